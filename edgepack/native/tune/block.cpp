#include "block.h"

#include <cstring>

namespace worker::tune {

Shape::Shape(const std::vector<int64_t> &lengths) {
    for (const int64_t length : lengths) {
        spans.push_back({size(), length});
        for (int64_t t = 0; t < length; t++) positions.push_back(static_cast<int32_t>(t));
    }
}

// What the backward pass needs of the forward pass.
struct Block::Inside {
    std::array<Product, ROLES> products;
    const Layer *layer;
    Tensor x, positions, normed, raw_q, raw_k, attended, middle, middle_normed, gate, up, active;
    Qkv qkv;
};

struct Block::Back {
    std::array<PairGradient, ROLES> pairs;
    Tensor x = nullptr;
};

namespace {

Tensor norm(Graph &graph, Tensor x, const std::vector<float> &gain, float eps) {
    ggml_context *context = graph.context();
    Tensor w = graph.input(gain.data(), gain.size());
    return graph.add(ggml_mul(context, graph.add(ggml_rms_norm(context, x, eps)), w));
}

Tensor norm_back(Graph &graph, Tensor x, const std::vector<float> &gain, float eps, Tensor g) {
    ggml_context *context = graph.context();
    Tensor scaled = graph.add(ggml_mul(context, g, graph.input(gain.data(), gain.size())));
    return graph.add(ggml_rms_norm_back(context, scaled, x, eps));
}

// [size · heads, n] as [size, heads, n], and back.
Tensor split(Graph &graph, Tensor x, int64_t size) {
    return graph.add(ggml_reshape_3d(graph.context(), x, size, x->ne[0] / size, x->ne[1]));
}

Tensor merged(Graph &graph, Tensor x) {
    return graph.add(ggml_reshape_2d(graph.context(), x, x->ne[0] * x->ne[1], x->ne[2]));
}

}  // namespace

// Rotary positions of heads [size · heads, n].
Tensor Block::turned(Graph &graph, Tensor x, int64_t size, Tensor positions, bool back) {
    const Facts &f = model_.facts;
    Tensor factors = model_.rope_factors.empty()
                         ? nullptr
                         : graph.input(model_.rope_factors.data(), model_.rope_factors.size());
    const auto rope = back ? ggml_rope_ext_back : ggml_rope_ext;
    Tensor y = rope(graph.context(), split(graph, x, size), positions, factors, f.head, f.rope, 0,
                    f.rope_base, f.rope_scale, 0, 1, 0, 0);
    return merged(graph, graph.add(y));
}

Block::Inside Block::inside(Graph &graph, int64_t index, const LayerPairs &pairs,
                            const Shape &shape, const float *x) {
    const Facts &f = model_.facts;
    ggml_context *context = graph.context();
    Inside in;
    in.layer = &model_.layers[index];
    for (int i = 0; i < ROLES; i++)
        in.products[i] = {model_.gguf.file.get(), &in.layer->weights[i], &pairs[i]};
    in.x = graph.input(x, f.hidden, shape.size());
    in.positions = graph.input(shape.positions.data(), shape.size());
    in.normed = norm(graph, in.x, in.layer->attn_norm, f.eps);
    const auto projected = [&](Role role) {
        Tensor y = tune::forward(graph, in.products[role], in.normed);
        const auto &bias = in.layer->biases[role];
        if (bias.empty()) return y;
        return graph.add(ggml_add(context, y, graph.input(bias.data(), bias.size())));
    };
    const auto heads = [&](Tensor y, const std::vector<float> &gain) {
        if (!gain.empty()) y = merged(graph, norm(graph, split(graph, y, f.head), gain, f.eps));
        return turned(graph, y, f.head, in.positions, false);
    };
    in.raw_q = projected(Q);
    in.raw_k = projected(K);
    in.qkv = {heads(in.raw_q, in.layer->q_norm), heads(in.raw_k, in.layer->k_norm), projected(V)};
    in.attended = attend(graph, {f.head, f.heads, f.kv_heads}, shape.spans, in.qkv);
    Tensor written = tune::forward(graph, in.products[O], in.attended);
    in.middle = graph.add(ggml_add(context, in.x, written));
    in.middle_normed = norm(graph, in.middle, in.layer->ffn_norm, f.eps);
    in.gate = tune::forward(graph, in.products[GATE], in.middle_normed);
    in.up = tune::forward(graph, in.products[UP], in.middle_normed);
    in.active = graph.add(ggml_swiglu_split(context, in.gate, in.up));
    return in;
}

Block::Back Block::back(Graph &graph, const Inside &in, const Shape &shape, const float *g,
                        bool first_trained) {
    const Facts &f = model_.facts;
    ggml_context *context = graph.context();
    Back found;
    const auto at_input = [&](Role role, Tensor x, Tensor gradient, bool needed = true) {
        const Product &product = in.products[role];
        found.pairs[role] = pair_gradient(graph, product, x, gradient);
        return needed ? tune::backward(graph, product, gradient) : nullptr;
    };
    const auto sum = [&](Tensor a, Tensor b) { return graph.add(ggml_add(context, a, b)); };
    Tensor out = graph.input(g, f.hidden, shape.size());
    Tensor active = at_input(DOWN, in.active, out);
    Tensor up = graph.add(ggml_mul(context, active, graph.add(ggml_silu(context, in.gate))));
    Tensor middle = at_input(UP, in.middle_normed, up);
    Tensor at_silu = graph.add(ggml_mul(context, active, in.up));
    Tensor gate = graph.add(ggml_silu_back(context, at_silu, in.gate));
    middle = sum(middle, at_input(GATE, in.middle_normed, gate));
    middle = sum(out, norm_back(graph, in.middle, in.layer->ffn_norm, f.eps, middle));
    Tensor attended = at_input(O, in.attended, middle);
    const Heads heads{f.head, f.heads, f.kv_heads};
    const Qkv at = attend_back(graph, heads, shape.spans, in.qkv, attended);
    const auto before_heads = [&](Tensor y, Tensor raw, const std::vector<float> &gain) {
        y = turned(graph, y, f.head, in.positions, true);
        if (gain.empty()) return y;
        return merged(graph, norm_back(graph, split(graph, raw, f.head), gain, f.eps,
                                       split(graph, y, f.head)));
    };
    const bool needed = !first_trained;
    Tensor normed = at_input(Q, in.normed, before_heads(at.q, in.raw_q, in.layer->q_norm), needed);
    Tensor k = at_input(K, in.normed, before_heads(at.k, in.raw_k, in.layer->k_norm), needed);
    Tensor v = at_input(V, in.normed, at.v, needed);
    if (!needed) return found;
    normed = norm_back(graph, in.x, in.layer->attn_norm, f.eps, sum(sum(normed, k), v));
    found.x = graph.keep(sum(middle, normed));
    return found;
}

void Block::forward(int64_t index, const LayerPairs &pairs, const Shape &shape, float *x) {
    Graph graph(engine_, nodes(shape));
    const Inside in = inside(graph, index, pairs, shape, x);
    Tensor y = tune::forward(graph, in.products[DOWN], in.active);
    y = graph.keep(graph.add(ggml_add(graph.context(), in.middle, y)));
    graph.compute();
    std::memcpy(x, y->data, ggml_nbytes(y));
}

LayerGradients Block::backward(int64_t index, const LayerPairs &pairs, const Shape &shape,
                               const float *x, float *g, bool first_trained) {
    Graph graph(engine_, nodes(shape));
    const Inside in = inside(graph, index, pairs, shape, x);
    const Back found = back(graph, in, shape, g, first_trained);
    graph.compute();
    LayerGradients gradients;
    const auto values = [](Tensor t) {
        const auto *data = static_cast<const float *>(t->data);
        return std::vector<float>(data, data + ggml_nelements(t));
    };
    for (int i = 0; i < ROLES; i++)
        if (found.pairs[i].A) gradients[i] = {values(found.pairs[i].A), values(found.pairs[i].B)};
    if (found.x) std::memcpy(g, found.x->data, ggml_nbytes(found.x));
    return gradients;
}

size_t Block::measure(int64_t index, const LayerPairs &pairs, const Shape &shape) {
    Graph graph(engine_, nodes(shape));
    float outside = 0;  // only addresses of what it stands for are used
    back(graph, inside(graph, index, pairs, shape, &outside), shape, &outside, false);
    return graph.measure();
}

size_t Block::nodes(const Shape &shape) const {
    const Facts &f = model_.facts;
    const int64_t widest = std::max(f.hidden, f.feed) + 64;
    const size_t runs = 2 * (widest * widest / MATRIX_AT_ONCE + 2);
    return 512 + 8 * ROLES * runs + attention_nodes({f.head, f.heads, f.kv_heads}, shape.spans);
}

}  // namespace worker::tune
