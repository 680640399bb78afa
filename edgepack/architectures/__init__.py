"""Model families as data, one per file; the file's name is Hugging Face's ``model_type``."""
