// Causal attention of several examples that lie one behind another, forward and backward.
//
// Grouped queries: `heads / kv_heads` heads share keys and values. Examples are computed one by one
// and, where they are long, a few heads at a time, so that no more than a run of scores is in
// memory. Lengths are filled up with zeros to a multiple of what a CPU multiplies at once; causality
// keeps real tokens from seeing them.

#pragma once

#include <cstdint>
#include <vector>

#include "graph.h"

namespace worker::tune {

// Positions of an example among those of its batch.
struct Span {
    int64_t start, length;
};

struct Heads {
    int64_t size, queries, keys;  // values of a head; numbers of heads
};

struct Qkv {
    Tensor q, k, v;
};

// The outputs [size · queries, n] of q [size · queries, n], k and v [size · keys, n].
Tensor attend(Graph &graph, const Heads &heads, const std::vector<Span> &spans, const Qkv &in);

// The gradients at q, k and v of that at the output.
Qkv attend_back(Graph &graph, const Heads &heads, const std::vector<Span> &spans, const Qkv &in,
                Tensor g);

// Nodes that both need, at most.
size_t attention_nodes(const Heads &heads, const std::vector<Span> &spans);

}  // namespace worker::tune
