// Numbers as a file of factors stores them.

#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"

namespace worker::tune {

// x as float16 holds it.
float half(float x);

// Whether `rounded` knows a type.
bool can_round(ggml_type type);

// x in the type of a stored tensor. The scale of each of its blocks grows like the largest |x| in
// it, so that no search is needed at every step, and the stored values themselves stay as they are
// (edgepack/recover/trainable.py: _rounded).
std::vector<float> rounded(ggml_type type, const std::vector<uint8_t> &stored,
                           std::vector<float> x);

}  // namespace worker::tune
