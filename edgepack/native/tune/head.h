// The loss over a large vocabulary, a run of the output matrix's rows at a time.
//
// The logits of all tokens are never in memory together. One sweep over the vocabulary keeps, as
// attention does it, the largest logit, Σ exp and the mean row under softmax, e = Σ p·W. With the
// row that is wanted as the target, cross-entropy is log Σ exp − h·W[label], its gradient at h
// e − W[label]. KL(then ‖ now) is the same with the untuned model's mean row as the target, and a
// constant: Σ p·log p − h·Σ p·W + log Σ exp. So a teacher is kept as a row and a number for each
// token.

#pragma once

#include <vector>

#include "model.h"
#include "products.h"

namespace worker::tune {

// What tokens should predict: rows [n, width], constants [n].
struct Targets {
    std::vector<float> rows;
    std::vector<double> constants;
};

class Head {
  public:
    Head(Engine &engine, const Model &model, Pairs pairs);

    int64_t width() const { return model_.facts.hidden + pairs_.rank; }

    // Cross-entropy's targets for labels.
    Targets labels(const std::vector<int32_t> &ids) const;

    // Of the hidden states x [n, hidden] before the final norm: what predicts as they do.
    Targets imitated(const std::vector<float> &x);

    // The loss of each of n tokens, in nats. x becomes the gradient of Σ weight · loss.
    std::vector<double> loss(std::vector<float> &x, const Targets &targets,
                             const std::vector<float> &weights);

    // Bytes that `loss` needs for n tokens, its arguments included.
    size_t measure(int64_t n);

  private:
    struct Sweep {
        std::vector<float> mean;     // [n, width]: Σ p·[W | B]
        std::vector<double> logsum;  // [n]
    };
    std::vector<float> normed(const std::vector<float> &x);  // [h; A·h]
    Sweep sweep(const std::vector<float> &h);
    void add_run(Graph &graph, const std::vector<float> &h, int64_t first, int64_t count,
                 Sweep &sums, std::vector<float> &largest) const;
    Product product() const { return {model_.gguf.file.get(), &model_.head, &pairs_}; }

    Engine &engine_;
    const Model &model_;
    const Pairs pairs_;
};

// x[i] = e^(x[i] − shift); returns the sum.
double exponentials(float *x, int64_t count, float shift);

}  // namespace worker::tune
