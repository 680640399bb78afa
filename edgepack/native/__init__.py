"""Programs in C++ for phones and other machines: llama.cpp without Python.

`bench/` times a model, `chat/` answers, `tune/` trains adapters; `shared/` is what they share.
`build.py` compiles them.
"""
