"""Train L and R of a packed model, or an adapter on top of them, on a person's own examples.

Takes an output folder and rows of examples; gives an adapter and what it does to held-out examples
and to general text. Q stays packed. May import ``adapters`` and everything below.
"""
