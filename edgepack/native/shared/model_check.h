// Checks of GGUF files before llama.cpp opens them, which ends the process at some of them.
//
// They are those of edgepack/runtimes/gguf_check.py, common to all architectures. What llama.cpp
// itself refuses with a message is left out.

#pragma once

#include <cstdint>
#include <string>

#include "gguf_file.h"

namespace worker {

enum class Kind { model, factors, adapter };
constexpr const char *KIND_NAMES[] = {"model", "factors", "adapter"};

// Which of the three it is. Other kinds of GGUF files are a `Failure` that says what they are.
Kind kind_of(const GgufFile &file);

// Refuse a file that is no model for chat, or at which llama.cpp would end the process.
void check_model(const GgufFile &file);

// Refuse an adapter that does not fit the model, or at which llama.cpp would end the process.
void check_adapter(const GgufFile &adapter, const GgufFile &model);

// Whether an adapter holds the model's factors too, and so takes their place (L·R + ΔW).
bool holds_factors(const GgufFile &adapter);

// Least bytes of keys and values per token of context, as float16.
uint64_t cache_bytes(const GgufFile &model);

}  // namespace worker
