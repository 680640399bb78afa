// The options of a training: a recipe's section `finetune` (edgepack/recipe/training.py), with the
// same defaults and bounds.

#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "../shared/fields.h"

namespace worker::tune {

struct Options {
    bool stack = true;  // mode; else `factors`
    int64_t r = 8;
    double lora_alpha = 16;
    bool all_linear = true;
    std::vector<std::string> target_modules;
    double learning_rate = 1e-3, weight_decay = 0, warmup_ratio = 0.05, clip = 1;
    int64_t epochs = 3;
    std::optional<int64_t> steps;
    int64_t batch_size = 4, sequence_length = 512;
    double replay = 0.5;
    bool skip_bad_rows = false;
    int64_t seed = 0;
    std::optional<int64_t> memory;

    // Of a request's fields.
    static Options read(const Fields &request);

    // Whether a module, as "model.layers.0.self_attn.q_proj", is to be trained.
    bool targets(const std::string &module) const;

    // All that a state depends on, as text.
    std::string key() const;
};

}  // namespace worker::tune
