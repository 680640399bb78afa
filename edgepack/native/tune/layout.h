// The memory of a training, planned: what it needs, and how to make it fit.

#pragma once

#include <cstdint>

#include "examples.h"
#include "factors.h"
#include "graph.h"
#include "model.h"
#include "options.h"

namespace worker::tune {

// How a run uses memory. All layouts are exact; the later ones are slower.
struct Layout {
    int64_t positions = 256;      // of a micro-batch
    bool inputs_on_disk = false;  // of blocks, between the passes
    bool parameters_on_disk = false;
    int64_t peak = 0;             // bytes that are expected of the process
};

// The fastest layout that `options.memory` allows, for examples of up to `longest` tokens. `kept`
// are the tokens of general texts. A `Failure` where none fits, which says what it would take.
Layout choose_layout(Engine &engine, const Model &model, const Factors &factors,
                     const Options &options, int64_t longest, int64_t kept);

// Give memory that was freed back to the system, now and at once from now on.
void return_freed_memory();

}  // namespace worker::tune
