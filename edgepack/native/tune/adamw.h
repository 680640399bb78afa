// AdamW (Loshchilov and Hutter, arXiv 1711.05101) with a clipped gradient, warm-up and a cosine.

#pragma once

#include "options.h"
#include "parameters.h"

namespace worker::tune {

// The length of the gradient over all parameters.
double gradient_norm(const Parameters &parameters);

// Step `number` (from 0) of `steps`, with the parameters' gradients of that length.
void adamw(Parameters &parameters, const Options &options, size_t number, size_t steps,
           double length);

// The learning rate of a step as a share of the highest: a linear start, then half a cosine
// (edgepack/recover/adam.py).
double schedule(size_t step, size_t steps, double warm_up);

}  // namespace worker::tune
