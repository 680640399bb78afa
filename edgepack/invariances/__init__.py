"""Changes of a checkpoint's weights that leave what it computes alone, and suit Q better."""
