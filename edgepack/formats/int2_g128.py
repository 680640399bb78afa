"""2 bits: 128 columns, d·(code − 2), 2.125 bits, for ONNX."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(2, 128)
