"""How good a compressed model is: its distance from the original, its zero-shot accuracy."""
