// How the next token is chosen: llama.cpp's samplers, in the order of edgepack's runtimes.

#pragma once

#include <cstdint>
#include <memory>

#include "../shared/fields.h"
#include "llama.h"

namespace worker {

struct Sampling {
    double temperature = 0.0;  // 0: the likeliest
    int top_k = 40;
    double top_p = 0.95, min_p = 0.0;
    double repeat_penalty = 1.0;  // of the answer's last 64 tokens
    uint32_t seed = 0;
};

struct FreeSampler {
    void operator()(llama_sampler *it) const { llama_sampler_free(it); }
};
using Sampler = std::unique_ptr<llama_sampler, FreeSampler>;

Sampling read_sampling(const Fields &fields);
Sampler make_sampler(const Sampling &sampling, int vocabulary);

}  // namespace worker
