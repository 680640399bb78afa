"""The files that other programs read: GGUF, ONNX, Ollama's Modelfile, PEFT's adapter folder.

Takes decomposed (perhaps recovered) weights and a target; gives a folder of files, which their
runtime has opened where it is installed. May import ``recover``, ``decompose``, ``runtimes`` and
below, no target.
"""
