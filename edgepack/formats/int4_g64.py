"""4 bits: 64 columns, d·(code − z), 4.312 bits, for ONNX."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(4, 64)
