// What is trained: a new pair on top of Q + L·R (`stack`), or L and R themselves (`factors`).
//
// Masters are float32. The forward pass uses them rounded to what the file stores, and the gradient
// there is applied to the masters (straight-through), as in edgepack/finetune/trained.py.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "arrays.h"
#include "block.h"
#include "factors.h"
#include "options.h"

namespace worker::tune {

// A weight that learns. Its A [rank, in] is the array 2·i of a kind, its B [rank, out] 2·i + 1.
struct Learning {
    int64_t layer;
    Role role;
    int64_t rank;
    float scale;
    std::string name;  // "blk.0.attn_q.weight"
};

class Parameters {
  public:
    // `place`: where arrays that are not to be in memory are kept; empty: they are.
    Parameters(const Model &model, const Factors &factors, const Options &options,
               const std::string &place);

    const std::vector<Learning> &weights() const { return weights_; }
    int64_t lowest() const { return weights_.front().layer; }  // the first block that learns
    size_t count() const;                                      // numbers that learn

    // All pairs of a block's weights: as they are now, or of the model as it was packed.
    LayerPairs pairs(int64_t layer, bool tuned) const;
    const Factors &factors() const { return factors_; }

    // A master as the file stores it.
    std::vector<float> rounded(size_t array) const;
    // What training adds to a weight: A [rank, in], B [rank, out], with the scale in B.
    struct Difference {
        int64_t rank;
        std::vector<float> A, B;
    };
    Difference difference(size_t weight) const;

    void add(int64_t layer, const LayerGradients &gradients);

    // What the learning rate of an array is multiplied by.
    double unit(size_t array) const { return units_.empty() ? 1 : units_[array]; }

    std::unique_ptr<Arrays> masters, first, second, gradients;

  private:
    std::vector<float> started(size_t array, int64_t seed) const;
    const Factor *stored(const Learning &weight) const;

    const Model &model_;
    const Factors &factors_;
    const bool stack_;
    std::vector<Learning> weights_;
    std::vector<std::array<int, ROLES>> places_;  // block, role → weight, or −1
    std::vector<double> units_;
};

// L and R of the output matrix, which do not learn.
Pairs head_pairs(const Model &model, const Factors &factors);

// The weights that the options name, and their ranks. None is a `Failure`.
std::vector<Learning> learning(const Model &model, const Factors &factors, const Options &options);

}  // namespace worker::tune
