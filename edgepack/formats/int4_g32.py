"""4 bits: 32 columns, d·(code − z), 4.625 bits, for ONNX."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(4, 32)
