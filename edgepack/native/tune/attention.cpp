#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "products.h"

namespace worker::tune {
namespace {

constexpr int64_t SCORES_AT_ONCE = 1 << 18;  // 1 MB

int64_t padded(int64_t length) { return (length + RANK_STEP - 1) / RANK_STEP * RANK_STEP; }

// Heads of keys whose scores are computed at once.
int64_t keys_at_once(const Heads &heads, int64_t length) {
    const int64_t scores = padded(length) * padded(length) * (heads.queries / heads.keys);
    return std::clamp<int64_t>(SCORES_AT_ONCE / scores, 1, heads.keys);
}

float *at(Tensor x, int64_t i1, int64_t i2 = 0) {
    return reinterpret_cast<float *>(static_cast<char *>(x->data) + i1 * x->nb[1] + i2 * x->nb[2]);
}

// Heads `first` … of an example: [size · all, n] → [size, length filled up, count].
Tensor taken(Graph &graph, Tensor x, const Span &span, int64_t size, int64_t first, int64_t count) {
    const int64_t rows = padded(span.length);
    return graph.add(size, rows, count, {x}, [=](Tensor y, int i, int n) {
        const Share mine(count * rows, i, n);
        for (int64_t j = mine.first; j < mine.last; j++) {
            const int64_t head = j / rows, t = j % rows;
            float *to = at(y, t, head);
            if (t < span.length)
                std::memcpy(to, at(y->src[0], span.start + t) + (first + head) * size,
                            size * sizeof(float));
            else
                std::memset(to, 0, size * sizeof(float));
        }
    });
}

// The opposite: writes y [size, length filled up, count] into [size · all, n] in place.
void put(Graph &graph, Tensor into, Tensor y, const Span &span, int64_t first, Tensor *last) {
    const int64_t size = y->ne[0], count = y->ne[2];
    *last = graph.change({into, y, *last}, [=](Tensor all, int i, int n) {
        const Share mine(span.length, i, n);
        for (int64_t t = mine.first; t < mine.last; t++)
            for (int64_t head = 0; head < count; head++)
                std::memcpy(at(all, span.start + t) + (first + head) * size,
                            at(all->src[1], t, head), size * sizeof(float));
    });
}

// softmax of causal scores [keys, queries, heads] times `scale`, in place. Keys that a query does
// not see get 0.
Tensor causal_softmax(Graph &graph, Tensor scores, float scale) {
    ggml_context *context = graph.context();
    scores = graph.add(ggml_diag_mask_inf_inplace(context, scores, 0));
    return graph.add(ggml_soft_max_ext_inplace(context, scores, nullptr, scale, 0));
}

// One example, some heads.
struct Part {
    Tensor q, k, P;  // P: probabilities [keys, queries, heads]
};

struct Run {
    const Span &span;
    int64_t key, keys;      // heads
    int64_t query, queries;
};

Part begun(Graph &graph, const Heads &heads, const Run &run, const Qkv &in) {
    Part part;
    part.q = taken(graph, in.q, run.span, heads.size, run.query, run.queries);
    part.k = taken(graph, in.k, run.span, heads.size, run.key, run.keys);
    Tensor scores = graph.add(ggml_mul_mat(graph.context(), part.k, part.q));
    part.P = causal_softmax(graph, scores, 1 / std::sqrt(static_cast<float>(heads.size)));
    return part;
}

// [a, b · group, keys] → [b · group, a, keys]: what heads that share keys contribute adds up.
Tensor turned(Graph &graph, Tensor x, int64_t keys) {
    Tensor grouped = ggml_reshape_3d(graph.context(), x, x->ne[0], x->ne[1] * x->ne[2] / keys, keys);
    return transposed(graph, grouped);
}

template <typename Each>
void for_runs(const Heads &heads, const std::vector<Span> &spans, const Each &each) {
    const int64_t group = heads.queries / heads.keys;
    for (const Span &span : spans) {
        const int64_t some = keys_at_once(heads, span.length);
        for (int64_t key = 0; key < heads.keys; key += some) {
            const int64_t count = std::min(some, heads.keys - key);
            each(Run{span, key, count, key * group, count * group});
        }
    }
}

Tensor whole(Graph &graph, Tensor room, Tensor last) {
    Tensor view = ggml_view_tensor(graph.context(), room);
    view->op = GGML_OP_VIEW;
    view->src[0] = room;
    view->src[1] = last;
    return graph.add(view);
}

}  // namespace

Tensor attend(Graph &graph, const Heads &heads, const std::vector<Span> &spans, const Qkv &in) {
    Tensor out = graph.room(in.q->ne[0], in.q->ne[1], in.q), last = out;
    for_runs(heads, spans, [&](const Run &run) {
        const Part part = begun(graph, heads, run, in);
        Tensor v = taken(graph, in.v, run.span, heads.size, run.key, run.keys);
        Tensor y = graph.add(ggml_mul_mat(graph.context(), transposed(graph, v), part.P));
        put(graph, out, y, run.span, run.query, &last);
    });
    return whole(graph, out, last);
}

Qkv attend_back(Graph &graph, const Heads &heads, const std::vector<Span> &spans, const Qkv &in,
                Tensor g) {
    ggml_context *context = graph.context();
    Qkv at;
    for (auto [from, to] : {std::pair{in.q, &at.q}, {in.k, &at.k}, {in.v, &at.v}})
        *to = graph.room(from->ne[0], from->ne[1], g);
    Qkv last = at;
    for_runs(heads, spans, [&](const Run &run) {
        const float scale = 1 / std::sqrt(static_cast<float>(heads.size));
        const Part part = begun(graph, heads, run, in);
        Tensor v = taken(graph, in.v, run.span, heads.size, run.key, run.keys);
        Tensor dy = taken(graph, g, run.span, heads.size, run.query, run.queries);
        Tensor dv = graph.add(ggml_mul_mat(context, turned(graph, dy, run.keys),
                                           turned(graph, part.P, run.keys)));
        put(graph, at.v, dv, run.span, run.key, &last.v);
        Tensor dP = graph.add(ggml_mul_mat(context, v, dy));
        Tensor dS = graph.add(ggml_soft_max_ext_back(context, dP, part.P, scale, 0));
        Tensor dq = graph.add(ggml_mul_mat(context, transposed(graph, part.k), dS));
        put(graph, at.q, dq, run.span, run.query, &last.q);
        Tensor dk = graph.add(ggml_mul_mat(context, turned(graph, part.q, run.keys),
                                           turned(graph, dS, run.keys)));
        put(graph, at.k, dk, run.span, run.key, &last.k);
    });
    return {whole(graph, at.q, last.q), whole(graph, at.k, last.k), whole(graph, at.v, last.v)};
}

size_t attention_nodes(const Heads &heads, const std::vector<Span> &spans) {
    size_t runs = 0;
    for_runs(heads, spans, [&](const Run &) { runs++; });
    return 48 * runs + 32;
}

}  // namespace worker::tune
