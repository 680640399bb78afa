// Products with a frozen matrix and the pairs beside it: y = W·x + Σ scale·B·(A·x).
//
// W is decoded for the product and forgotten after it. All pairs of a weight are one, whose rank is
// a multiple of what a CPU multiplies at once: [W | B] times [x; A·x] is the whole sum, in one
// product. Backward, W is decoded again, transposed: [Wᵀ | Aᵀ] times [g; Bᵀ·g].

#pragma once

#include <vector>

#include "graph.h"
#include "tensors.h"

namespace worker::tune {

// Float values of a decoded matrix that are in memory at once: 2 MB.
constexpr int64_t MATRIX_AT_ONCE = 1 << 19;
// Ranks are padded to this: the inner dimension of ggml's float products.
constexpr int64_t RANK_STEP = 16;

// All pairs of one weight: A [rank, in]; B, with scale, column by column [rank, out]. The first
// `trained` rows and columns are those that learn; what is left of `rank` is zero.
struct Pairs {
    int64_t rank = 0, trained = 0;
    float scale = 1;  // of the trained pair
    std::vector<float> A, B;
};

// A frozen weight with its pairs. All that it names must outlive the graph.
struct Product {
    const File *file;
    const Stored *weight;
    const Pairs *pairs;
};

// y [out, n] of x [in, n].
Tensor forward(Graph &graph, const Product &product, Tensor x);

// The gradient at x [in, n] of that at y, g [out, n].
Tensor backward(Graph &graph, const Product &product, Tensor g);

// The gradients at a trained pair, [in, r] and [out, r], of x and g. Kept.
struct PairGradient {
    Tensor A = nullptr, B = nullptr;
};
PairGradient pair_gradient(Graph &graph, const Product &product, Tensor x, Tensor g);

// Rows of [W | B], as values [in + rank, count].
Tensor decoded(Graph &graph, const Product &product, int64_t first, int64_t count);

// [x; A·x] [in + rank, n]; x itself where there are no pairs.
Tensor extended(Graph &graph, const Pairs &pairs, Tensor x);

// Rows as columns: [n0, n1] → [n1, n0], for every matrix of a stack.
Tensor transposed(Graph &graph, Tensor x);

}  // namespace worker::tune
