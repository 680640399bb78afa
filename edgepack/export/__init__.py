"""Files that other programs read: GGUF, Ollama's Modelfile, PEFT's adapter folder."""
