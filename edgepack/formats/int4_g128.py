"""4 bits: 128 columns, d·(code − z), 4.156 bits, for ONNX."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(4, 128)
