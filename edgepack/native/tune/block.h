// A transformer block: norms, rotary positions, attention and a gated MLP, forward and backward.
//
// The backward pass gets the block's input and computes its inside again (Chen et al., arXiv
// 1604.06174), and inside that each matrix is decoded again (MeSP, arXiv 2602.13069).

#pragma once

#include <array>
#include <vector>

#include "attention.h"
#include "model.h"
#include "products.h"

namespace worker::tune {

// Which positions a batch has: those of its examples, one behind another.
struct Shape {
    std::vector<Span> spans;
    std::vector<int32_t> positions;  // of each token in its example

    explicit Shape(const std::vector<int64_t> &lengths);
    int64_t size() const { return static_cast<int64_t>(positions.size()); }
};

using LayerPairs = std::array<Pairs, ROLES>;

struct PairValues {
    std::vector<float> A, B;  // [r, in] and [r, out], row by row; empty where nothing is trained
};
using LayerGradients = std::array<PairValues, ROLES>;

class Block {
  public:
    Block(Engine &engine, const Model &model) : engine_(engine), model_(model) {}

    // x [n, hidden] → the next block's input, in its place.
    void forward(int64_t index, const LayerPairs &pairs, const Shape &shape, float *x);

    // g, the gradient at the block's output, → that at its input x, in its place; with
    // `first_trained` nobody needs it, and g is left as it is.
    LayerGradients backward(int64_t index, const LayerPairs &pairs, const Shape &shape,
                            const float *x, float *g, bool first_trained);

    // Bytes that `backward` needs beside its arguments; `forward` needs less.
    size_t measure(int64_t index, const LayerPairs &pairs, const Shape &shape);

  private:
    struct Inside;
    struct Back;
    Inside inside(Graph &graph, int64_t index, const LayerPairs &pairs, const Shape &shape,
                  const float *x);
    Back back(Graph &graph, const Inside &in, const Shape &shape, const float *g,
              bool first_trained);
    Tensor turned(Graph &graph, Tensor x, int64_t heads, Tensor positions, bool back);
    size_t nodes(const Shape &shape) const;

    Engine &engine_;
    const Model &model_;
};

}  // namespace worker::tune
