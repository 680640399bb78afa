"""2 bits: 32 columns, d·(code − 2), 2.5 bits, for ONNX."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(2, 32)
