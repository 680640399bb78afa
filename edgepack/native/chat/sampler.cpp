#include "sampler.h"

namespace worker {
namespace {

constexpr int PENALTY_WINDOW = 64;
constexpr int64_t MOST_SEED = 0xFFFFFFFE;  // llama.cpp takes the next one as: any

}  // namespace

Sampling read_sampling(const Fields &fields) {
    Sampling found;
    found.temperature = fields.number("temperature", found.temperature, 0.0, 100.0);
    found.top_k = static_cast<int>(fields.integer("top_k", found.top_k, 0, 1 << 30));
    found.top_p = fields.number("top_p", found.top_p, 0.0, 1.0);
    found.min_p = fields.number("min_p", found.min_p, 0.0, 1.0);
    found.repeat_penalty = fields.number("repeat_penalty", found.repeat_penalty, 0.1, 10.0);
    found.seed = static_cast<uint32_t>(fields.integer("seed", found.seed, 0, MOST_SEED));
    return found;
}

Sampler make_sampler(const Sampling &sampling, int vocabulary) {
    auto params = llama_sampler_chain_default_params();
    params.no_perf = true;
    Sampler chain(llama_sampler_chain_init(params));
    const auto add = [&](llama_sampler *it) { llama_sampler_chain_add(chain.get(), it); };
    if (sampling.repeat_penalty != 1.0) {
        const auto penalty = static_cast<float>(sampling.repeat_penalty);
        add(llama_sampler_init_penalties(vocabulary, PENALTY_WINDOW, penalty, 0.0F, 0.0F));
    }
    if (sampling.temperature <= 0.0) {
        add(llama_sampler_init_greedy());
        return chain;
    }
    add(llama_sampler_init_top_k(sampling.top_k));
    add(llama_sampler_init_top_p(static_cast<float>(sampling.top_p), 1));
    if (sampling.min_p > 0.0) add(llama_sampler_init_min_p(static_cast<float>(sampling.min_p), 1));
    add(llama_sampler_init_temp(static_cast<float>(sampling.temperature)));
    add(llama_sampler_init_dist(sampling.seed));
    return chain;
}

}  // namespace worker
