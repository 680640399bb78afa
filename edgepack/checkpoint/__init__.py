"""Models as lazy tensors, from a hub id, a folder, a GGUF file or a package."""
