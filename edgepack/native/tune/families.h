// The families that edgepack-tune trains, a line each: the architecture's name in GGUF, and how its
// rotary positions pair. Their block is the one of block.cpp; biases of q, k and v, and norms of q
// and k, are there where the file has them. model.cpp makes a table of these lines, and
// edgepack/native/families.py reads them.
FAMILY("llama", GGML_ROPE_TYPE_NORMAL)
FAMILY("qwen2", GGML_ROPE_TYPE_NEOX)
FAMILY("qwen3", GGML_ROPE_TYPE_NEOX)
