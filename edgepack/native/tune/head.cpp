#include "head.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace worker::tune {
namespace {

constexpr int64_t ROWS_AT_ONCE = 1024;
constexpr int64_t LOGITS_AT_ONCE = 1 << 19;  // 2 MB

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));

Floats all(float x) { return Floats{x, x, x, x}; }

// e^x for x ≤ 0, to 2 units in the last place (Cephes' expf); 0 below −87.
Floats exponential(Floats x) {
    const Ints tiny = x < all(-87.0f);
    x = (Floats)(((Ints)x & ~tiny) | ((Ints)all(-87.0f) & tiny));
    const Floats magic = all(12582912.0f);  // 1.5 · 2²³: adding it rounds to whole numbers
    const Floats n = x * all(1.44269504088896341f) + magic - magic;
    Floats r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);
    Floats y = all(1.9875691500e-4f);
    for (const float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f,
                          5.0000001201e-1f})
        y = y * r + all(c);
    y = y * r * r + r + all(1.0f);
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return (Floats)((Ints)(y * (Floats)power) & ~tiny);
}

}  // namespace

double exponentials(float *x, int64_t count, float shift) {
    double sum = 0;
    int64_t i = 0;
    while (i + 4 <= count) {  // sums of runs in float, as they are of about one size
        Floats run = all(0);
        for (const int64_t end = std::min(count, i + 256); i + 4 <= end; i += 4) {
            Floats y;
            std::memcpy(&y, x + i, sizeof(y));
            y = exponential(y - all(shift));
            std::memcpy(x + i, &y, sizeof(y));
            run += y;
        }
        sum += static_cast<double>(run[0]) + run[1] + run[2] + run[3];
    }
    for (; i < count; i++) sum += x[i] = exponential(all(x[i] - shift))[0];
    return sum;
}

Head::Head(Engine &engine, const Model &model, Pairs pairs)
    : engine_(engine), model_(model), pairs_(std::move(pairs)) {}

Targets Head::labels(const std::vector<int32_t> &ids) const {
    const Stored &W = model_.head;
    Targets found{std::vector<float>(ids.size() * width()), std::vector<double>(ids.size())};
    std::vector<uint8_t> scratch;
    for (size_t t = 0; t < ids.size(); t++) {
        float *row = &found.rows[t * width()];
        decode(*model_.gguf.file, W, ids[t], 1, 0, W.columns, row, width(), scratch);
        for (int64_t r = 0; r < pairs_.rank; r++)
            row[W.columns + r] = pairs_.B[r * W.rows + ids[t]];
    }
    return found;
}

Targets Head::imitated(const std::vector<float> &x) {
    const std::vector<float> h = normed(x);
    Sweep found = sweep(h);
    Targets targets{std::move(found.mean), std::move(found.logsum)};
    for (size_t t = 0; t < targets.constants.size(); t++) {
        double mean = 0;  // of the logits
        for (int64_t i = 0; i < width(); i++)
            mean += static_cast<double>(h[t * width() + i]) * targets.rows[t * width() + i];
        targets.constants[t] = mean - targets.constants[t];
    }
    return targets;
}

std::vector<double> Head::loss(std::vector<float> &x, const Targets &targets,
                               const std::vector<float> &weights) {
    const int64_t n = weights.size(), hidden = model_.facts.hidden;
    const std::vector<float> h = normed(x);
    Sweep found = sweep(h);
    std::vector<double> losses(n);
    for (int64_t t = 0; t < n; t++) {
        double wanted = 0;
        for (int64_t i = 0; i < width(); i++) {
            const size_t at = t * width() + i;
            wanted += static_cast<double>(h[at]) * targets.rows[at];
            found.mean[at] = weights[t] * (found.mean[at] - targets.rows[at]);
        }
        losses[t] = targets.constants[t] - wanted + found.logsum[t];
    }
    Graph graph(engine_, 32);
    ggml_context *context = graph.context();
    Tensor g = graph.input(found.mean.data(), width(), n);
    if (pairs_.rank) {  // at h of [h; A·h]
        Tensor own = ggml_view_2d(context, g, hidden, n, g->nb[1], 0);
        Tensor low = graph.add(ggml_cont(
            context, ggml_view_2d(context, g, pairs_.rank, n, g->nb[1], hidden * sizeof(float))));
        Tensor A = graph.input(pairs_.A.data(), hidden, pairs_.rank);
        g = graph.add(ggml_add(context, graph.add(ggml_mul_mat(context, transposed(graph, A), low)),
                               own));
    }
    Tensor gain = graph.input(model_.output_norm.data(), hidden);
    g = graph.add(ggml_mul(context, g, gain));
    g = graph.add(ggml_rms_norm_back(context, g, graph.input(x.data(), hidden, n),
                                     model_.facts.eps));
    graph.keep(g);
    graph.compute();
    std::memcpy(x.data(), g->data, ggml_nbytes(g));
    return losses;
}

std::vector<float> Head::normed(const std::vector<float> &x) {
    const int64_t hidden = model_.facts.hidden, n = x.size() / hidden;
    Graph graph(engine_, 32);
    ggml_context *context = graph.context();
    Tensor h = graph.add(ggml_rms_norm(context, graph.input(x.data(), hidden, n), model_.facts.eps));
    h = graph.add(ggml_mul(context, h, graph.input(model_.output_norm.data(), hidden)));
    h = graph.keep(extended(graph, pairs_, h));
    graph.compute();
    const auto *data = static_cast<const float *>(h->data);
    return std::vector<float>(data, data + ggml_nelements(h));
}

Head::Sweep Head::sweep(const std::vector<float> &h) {
    const int64_t n = h.size() / width(), rows = model_.head.rows;
    Sweep sums{std::vector<float>(h.size()), std::vector<double>(n)};
    std::vector<float> largest(n, -std::numeric_limits<float>::infinity());
    const int64_t fit = LOGITS_AT_ONCE / n / RANK_STEP * RANK_STEP;
    const int64_t run = std::clamp<int64_t>(fit, 4 * RANK_STEP, ROWS_AT_ONCE);
    for (int64_t first = 0; first < rows; first += run) {
        Graph graph(engine_, 32);
        add_run(graph, h, first, std::min(run, rows - first), sums, largest);
        graph.compute();
    }
    for (int64_t t = 0; t < n; t++) {
        const auto share = static_cast<float>(1 / sums.logsum[t]);
        for (int64_t i = 0; i < width(); i++) sums.mean[t * width() + i] *= share;
        sums.logsum[t] = largest[t] + std::log(sums.logsum[t]);
    }
    return sums;
}

// Until the end, `mean` and `logsum` are Σ exp(logit − largest)·[W | B] and Σ exp(logit − largest).
void Head::add_run(Graph &graph, const std::vector<float> &h, int64_t first, int64_t count,
                   Sweep &sums, std::vector<float> &largest) const {
    const int64_t n = largest.size(), width = this->width();
    ggml_context *context = graph.context();
    const Product product = this->product();
    Tensor W = decoded(graph, product, first, count);
    Tensor logits = graph.add(ggml_mul_mat(context, W, graph.input(h.data(), width, n)));
    Tensor p = graph.change({logits}, [&sums, &largest, width](Tensor node, int i, int threads) {
        const Share mine(node->ne[1], i, threads);
        for (int64_t t = mine.first; t < mine.last; t++) {
            auto *row = reinterpret_cast<float *>(static_cast<char *>(node->data) + t * node->nb[1]);
            const float most = *std::max_element(row, row + node->ne[0]);
            if (most > largest[t]) {
                const auto shrink = static_cast<float>(std::exp(static_cast<double>(largest[t]) - most));
                for (int64_t j = 0; j < width; j++) sums.mean[t * width + j] *= shrink;
                sums.logsum[t] *= shrink;
                largest[t] = most;
            }
            sums.logsum[t] += exponentials(row, node->ne[0], largest[t]);
        }
    });
    Tensor added = graph.add(ggml_mul_mat(context, transposed(graph, W), p));
    Tensor mean = graph.input(sums.mean.data(), width, n);
    graph.add(ggml_add_inplace(context, mean, added));
}

size_t Head::measure(int64_t n) {
    const std::vector<float> h(1);
    Sweep sums{std::vector<float>(1), {}};
    std::vector<float> largest(n);
    const int64_t fit = LOGITS_AT_ONCE / n / RANK_STEP * RANK_STEP;
    const int64_t run = std::clamp<int64_t>(fit, 4 * RANK_STEP, ROWS_AT_ONCE);
    Graph graph(engine_, 32);
    add_run(graph, h, 0, std::min(run, model_.head.rows), sums, largest);
    return graph.measure() + 4 * n * width() * sizeof(float);
}

}  // namespace worker::tune
