"""The worker for phones and other machines: llama.cpp in one static program."""
