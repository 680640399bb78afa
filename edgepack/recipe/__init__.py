"""The YAML of a recipe as pydantic models.

Takes a file or a dict; gives a `Recipe`, or one line that names the wrong key. Imports nothing but
``core``, and no torch.
"""
