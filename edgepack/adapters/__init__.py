"""Adapters of a packed model: what they change, which base they belong to, and their files.

Takes an output folder and L·R pairs by weight; gives adapters for llama.cpp, PEFT and ONNX Runtime,
and reads them again. May import ``export``, ``runtimes``, ``checkpoint`` and below.
"""
