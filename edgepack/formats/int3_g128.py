"""3 bits: 128 columns, d·(code − z), 3.156 bits, for ONNX; 2 + 1 bit planes on disk."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(3, 128)
