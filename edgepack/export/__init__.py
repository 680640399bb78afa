"""Files for other programs: GGUF, ONNX, Ollama's Modelfile, PEFT's adapter folder."""
