#include "products.h"

#include <algorithm>
#include <cstring>

namespace worker::tune {
namespace {

constexpr int64_t TILE = 16;  // floats of a cache line

float *row(Tensor x, int64_t i1, int64_t i2 = 0) {
    return reinterpret_cast<float *>(static_cast<char *>(x->data) + i1 * x->nb[1] + i2 * x->nb[2]);
}

// out[j·stride + i] = x[i·width + j] for `count` ≤ TILE rows x.
void scatter(const float *x, int64_t count, int64_t width, float *out, int64_t stride) {
    if (count == TILE) {
        for (int64_t j = 0; j < width; j++)
            for (int64_t i = 0; i < TILE; i++) out[j * stride + i] = x[i * width + j];
        return;
    }
    for (int64_t j = 0; j < width; j++)
        for (int64_t i = 0; i < count; i++) out[j * stride + i] = x[i * width + j];
}

// [x; h] of two matrices with as many rows.
Tensor joined(Graph &graph, Tensor x, Tensor h) {
    return graph.add(x->ne[0] + h->ne[0], x->ne[1], 1, {x, h}, [](Tensor y, int i, int n) {
        const Tensor x = y->src[0], h = y->src[1];
        const Share mine(x->ne[1], i, n);
        for (int64_t t = mine.first; t < mine.last; t++) {
            std::memcpy(row(y, t), row(x, t), x->ne[0] * sizeof(float));
            std::memcpy(row(y, t) + x->ne[0], row(h, t), h->ne[0] * sizeof(float));
        }
    });
}

// Rows `first` … of [Wᵀ | Aᵀ], as values [out + rank, count]: columns of W.
Tensor decoded_transposed(Graph &graph, const Product &product, int64_t first, int64_t count) {
    const Stored &W = *product.weight;
    const int64_t rank = product.pairs->rank;
    return graph.add(W.rows + rank, count, 1, {}, [=](Tensor y, int i, int n) {
        const Share mine(W.rows, i, n, TILE);
        std::vector<float> some(TILE * count);
        std::vector<uint8_t> scratch;
        for (int64_t at = mine.first; at < mine.last; at += TILE) {
            const int64_t rows = std::min(TILE, mine.last - at);
            decode(*product.file, W, at, rows, first, count, some.data(), count, scratch);
            scatter(some.data(), rows, count, row(y, 0) + at, y->ne[0]);
        }
        const Share own(count, i, n);
        for (int64_t j = own.first; j < own.last; j++)
            for (int64_t r = 0; r < rank; r++)
                row(y, j)[W.rows + r] = product.pairs->A[r * W.columns + first + j];
    });
}

// Values of W that are decoded at once, in runs of whole blocks.
int64_t run_of(int64_t width, int64_t count, int64_t block) {
    const int64_t runs = std::max<int64_t>(1, (width * count + MATRIX_AT_ONCE - 1) / MATRIX_AT_ONCE);
    const int64_t run = (count + runs - 1) / runs;
    return std::min(count, (run + block - 1) / block * block);
}

Tensor matrix(Graph &graph, const std::vector<float> &values, int64_t n0, int64_t n1) {
    return graph.input(values.data(), n0, n1);
}

}  // namespace

Tensor decoded(Graph &graph, const Product &product, int64_t first, int64_t count) {
    const Stored &W = *product.weight;
    const int64_t rank = product.pairs->rank;
    return graph.add(W.columns + rank, count, 1, {}, [=](Tensor y, int i, int n) {
        const Share mine(count, i, n);
        std::vector<uint8_t> scratch;
        for (int64_t at = mine.first; at < mine.last; at += TILE) {
            const int64_t rows = std::min(TILE, mine.last - at);
            decode(*product.file, W, first + at, rows, 0, W.columns, row(y, at), y->ne[0], scratch);
            for (int64_t j = at; j < at + rows; j++)
                for (int64_t r = 0; r < rank; r++)
                    row(y, j)[W.columns + r] = product.pairs->B[r * W.rows + first + j];
        }
    });
}

Tensor extended(Graph &graph, const Pairs &pairs, Tensor x) {
    if (!pairs.rank) return x;
    ggml_context *context = graph.context();
    Tensor A = matrix(graph, pairs.A, x->ne[0], pairs.rank);
    return joined(graph, x, graph.add(ggml_mul_mat(context, A, x)));
}

Tensor forward(Graph &graph, const Product &product, Tensor x) {
    const Stored &W = *product.weight;
    x = extended(graph, *product.pairs, x);
    const int64_t run = run_of(x->ne[0], W.rows, TILE);
    if (run == W.rows)
        return graph.add(ggml_mul_mat(graph.context(), decoded(graph, product, 0, run), x));
    Tensor y = graph.room(W.rows, x->ne[1], x);
    for (int64_t at = 0; at < W.rows; at += run) {
        Tensor part = decoded(graph, product, at, std::min(run, W.rows - at));
        graph.into(y, ggml_mul_mat(graph.context(), part, x), at);
    }
    return graph.filled(y);
}

Tensor backward(Graph &graph, const Product &product, Tensor g) {
    const Stored &W = *product.weight;
    ggml_context *context = graph.context();
    if (product.pairs->rank) {
        Tensor B = matrix(graph, product.pairs->B, W.rows, product.pairs->rank);
        g = joined(graph, g, graph.add(ggml_mul_mat(context, B, g)));
    }
    const int64_t run = run_of(g->ne[0], W.columns, std::max(TILE, ggml_blck_size(W.type)));
    if (run == W.columns)
        return graph.add(ggml_mul_mat(context, decoded_transposed(graph, product, 0, run), g));
    Tensor x = graph.room(W.columns, g->ne[1], g);
    for (int64_t at = 0; at < W.columns; at += run) {
        Tensor part = decoded_transposed(graph, product, at, std::min(run, W.columns - at));
        graph.into(x, ggml_mul_mat(context, part, g), at);
    }
    return graph.filled(x);
}

PairGradient pair_gradient(Graph &graph, const Product &product, Tensor x, Tensor g) {
    const Pairs &pairs = *product.pairs;
    if (!pairs.trained) return {};
    ggml_context *context = graph.context();
    Tensor A = matrix(graph, pairs.A, x->ne[0], pairs.trained);
    Tensor B = matrix(graph, pairs.B, g->ne[0], pairs.trained);
    Tensor h = graph.add(ggml_mul_mat(context, A, x));  // A·x
    Tensor u = graph.add(ggml_mul_mat(context, B, g));  // scale · Bᵀ·g
    PairGradient found;
    found.A = graph.keep(graph.add(ggml_out_prod(context, x, u)));
    h = graph.add(ggml_scale(context, h, pairs.scale));
    found.B = graph.keep(graph.add(ggml_out_prod(context, g, h)));
    return found;
}

Tensor transposed(Graph &graph, Tensor x) {
    return graph.add(x->ne[1], x->ne[0], x->ne[2], {x}, [](Tensor y, int i, int n) {
        const Tensor x = y->src[0];
        const int64_t runs = (x->ne[1] + TILE - 1) / TILE;
        std::vector<float> some(TILE * x->ne[0]);
        const Share mine(runs * x->ne[2], i, n);
        for (int64_t at = mine.first; at < mine.last; at++) {
            const int64_t i2 = at / runs, i1 = at % runs * TILE;
            const int64_t rows = std::min(TILE, x->ne[1] - i1);
            for (int64_t j = 0; j < rows; j++)
                std::memcpy(&some[j * x->ne[0]], row(x, i1 + j, i2), x->ne[0] * sizeof(float));
            scatter(some.data(), rows, x->ne[0], row(y, 0, i2) + i1, y->ne[0]);
        }
    });
}

}  // namespace worker::tune
