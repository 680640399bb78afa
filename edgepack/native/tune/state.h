// The state of a training between steps: all that its next steps depend on.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "parameters.h"

namespace worker::tune {

// What a run did. One number for each step made.
struct Curve {
    std::vector<double> losses;
    uint64_t tokens = 0;
    double seconds = 0;
    int64_t positions = 0;  // of a micro-batch: other sums round differently

    double tokens_per_second() const { return seconds > 0 ? tokens / seconds : 0; }
};

// `key` is a number for the request that the state belongs to.
void save_state(const std::string &path, uint64_t key, const Curve &curve,
                const Parameters &parameters);

enum class Found { nothing, state, damaged };

// Reads a state into `curve` and `parameters`; neither is changed where there is none, or a damaged
// one. That of another request is a `Failure`.
Found load_state(const std::string &path, uint64_t key, Curve &curve, Parameters &parameters);

}  // namespace worker::tune
