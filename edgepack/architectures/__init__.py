"""Model families as data, one per file; the file's name is Hugging Face's ``model_type``.

Takes nothing; gives names of tensors, biases, activation, row order. Imports nothing of edgepack
but `core.parts`.
"""
