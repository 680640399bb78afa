"""3 bits: 64 columns, d·(code − z), 3.312 bits, for ONNX; 2 + 1 bit planes on disk."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(3, 64)
