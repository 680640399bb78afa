// Adapters and gradients as GGUF files, as edgepack/adapters/gguf.py writes them.

#pragma once

#include <map>
#include <string>
#include <vector>

#include "parameters.h"

namespace worker::tune {

// What training added, as float16: llama.cpp reads it with --lora. `marks` are further texts of the
// metadata.
void write_adapter(const std::string &path, const Model &model, const Parameters &parameters,
                   const std::map<std::string, std::string> &marks);

// The gradients as float32, named as the adapter's tensors, and the values that they were taken at,
// named ….value.
void write_gradients(const std::string &path, const Model &model, const Parameters &parameters);

}  // namespace worker::tune
