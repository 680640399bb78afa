"""3 bits: 32 columns, d·(code − z), 3.625 bits, for ONNX; 2 + 1 bit planes on disk."""

from edgepack.formats._integer import Integer

PLUGIN = Integer(3, 32)
