// The packed model: facts of its metadata, and where its weights lie.

#pragma once

#include <array>
#include <string>
#include <vector>

#include "tensors.h"

namespace worker::tune {

// The matrices of a block that are packed and trained, in the order of use.
enum Role { Q, K, V, O, GATE, UP, DOWN };
constexpr int ROLES = 7;

struct RoleNames {
    const char *gguf;    // "attn_q"
    const char *module;  // as in Hugging Face's names: "self_attn.q_proj"
};
extern const std::array<RoleNames, ROLES> ROLE_NAMES;

// What differs between models, all of it from the metadata.
struct Facts {
    std::string architecture, name;
    int64_t blocks = 0, hidden = 0, feed = 0, heads = 0, kv_heads = 0, head = 0, vocab = 0;
    float eps = 0;
    int rope = 0;  // GGML_ROPE_TYPE_…
    float rope_base = 0, rope_scale = 1;
    int64_t window = 0;  // most positions that a token sees; 0: all

    int64_t in(Role role) const;
    int64_t out(Role role) const;
};

struct Layer {
    std::array<Stored, ROLES> weights;
    std::array<std::vector<float>, 3> biases;  // of q, k, v; empty: none
    std::vector<float> attn_norm, ffn_norm;
    std::vector<float> q_norm, k_norm;  // empty: none
};

struct Model {
    WeightFile gguf;
    Facts facts;
    std::vector<Layer> layers;
    Stored embedding, head;  // head: the embedding, where they are tied
    bool tied = false;
    std::vector<float> output_norm, rope_factors;  // rope_factors: empty: none

    // Families and metadata that training does not compute are refused.
    static Model open(const std::string &path);
};

}  // namespace worker::tune
