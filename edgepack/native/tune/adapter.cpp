#include "adapter.h"

#include <algorithm>
#include <cmath>
#include <functional>

#include "files.h"

namespace worker::tune {
namespace {

// A tensor of a file: made when it is written, so that one is in memory at a time.
struct Entry {
    std::string name;
    ggml_type type;
    int64_t columns, rows;
    std::function<std::vector<float>()> values;
};

using Gguf = std::unique_ptr<gguf_context, FreeGguf>;

void write_entry(NewFile &file, const Entry &entry) {
    const std::vector<float> values = entry.values();
    if (entry.type == GGML_TYPE_F32) {
        file.write(values.data(), values.size() * sizeof(float));
    } else {
        std::vector<ggml_fp16_t> half(values.size());
        ggml_fp32_to_fp16_row(values.data(), half.data(), values.size());
        file.write(half.data(), half.size() * sizeof(half[0]));
    }
}

void write_gguf(const std::string &path, const std::string &what, Gguf header,
                const std::vector<Entry> &entries) {
    const size_t size = ggml_tensor_overhead() * (entries.size() + 1);
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> context(
        ggml_init({size, nullptr, /*no_alloc=*/true}), ggml_free);
    for (const Entry &entry : entries) {
        ggml_tensor *shape =
            ggml_new_tensor_2d(context.get(), entry.type, entry.columns, entry.rows);
        ggml_set_name(shape, entry.name.c_str());
        gguf_add_tensor(header.get(), shape);
    }
    std::vector<char> start(gguf_get_meta_size(header.get()));
    gguf_get_meta_data(header.get(), start.data());
    NewFile file(path, what);
    file.write(start.data(), start.size());
    for (const Entry &entry : entries) {
        file.pad(gguf_get_alignment(header.get()));
        write_entry(file, entry);
    }
    file.pad(gguf_get_alignment(header.get()));
    file.commit();
}

Gguf adapter_header(const Model &model, const std::map<std::string, std::string> &marks) {
    Gguf header(gguf_init_empty());
    const auto text = [&](const char *key, const std::string &value) {
        gguf_set_val_str(header.get(), key, value.c_str());
    };
    text("general.architecture", model.facts.architecture);
    text("general.type", "adapter");
    text("adapter.type", "lora");
    gguf_set_val_f32(header.get(), "adapter.lora.alpha", 0);  // the scale is in lora_b
    gguf_set_val_u32(header.get(), "general.quantization_version", 2);
    if (!model.facts.name.empty()) text("general.name", model.facts.name);
    for (const auto &[key, value] : marks) text(key.c_str(), value);
    return header;
}

// The same product, with each row of A and its column of B about equally large. The factors are
// powers of two, so that nothing is rounded; a trained B is small, and its values would lose bits
// in float16 (edgepack/adapters/adapter.py: balanced).
Parameters::Difference balanced(Parameters::Difference pair) {
    const int64_t in = pair.A.size() / pair.rank, out = pair.B.size() / pair.rank;
    const auto largest = [](const float *x, int64_t count) {
        float found = 0;
        for (int64_t i = 0; i < count; i++) found = std::max(found, std::abs(x[i]));
        return found;
    };
    for (int64_t r = 0; r < pair.rank; r++) {
        float *A = &pair.A[r * in], *B = &pair.B[r * out];
        const float a = largest(A, in), b = largest(B, out);
        const float power = std::nearbyint(std::log2(a / b) / 2);
        const float scale = a > 0 && b > 0 ? std::exp2(std::clamp(power, -60.0f, 60.0f)) : 1;
        for (int64_t i = 0; i < in; i++) A[i] /= scale;
        for (int64_t i = 0; i < out; i++) B[i] *= scale;
    }
    return pair;
}

}  // namespace

void write_adapter(const std::string &path, const Model &model, const Parameters &parameters,
                   const std::map<std::string, std::string> &marks) {
    std::vector<Entry> entries;
    for (size_t i = 0; i < parameters.weights().size(); i++) {
        const Learning &w = parameters.weights()[i];
        const int64_t rank = parameters.difference(i).rank;
        const auto pair = [&parameters, i] { return balanced(parameters.difference(i)); };
        entries.push_back({w.name + ".lora_a", GGML_TYPE_F16, model.facts.in(w.role), rank,
                           [pair] { return pair().A; }});
        entries.push_back({w.name + ".lora_b", GGML_TYPE_F16, rank, model.facts.out(w.role),
                           [pair, rank] {
                               const auto B = pair().B;
                               return turned(B, rank, B.size() / rank);
                           }});
    }
    write_gguf(path, "the adapter", adapter_header(model, marks), entries);
}

void write_gradients(const std::string &path, const Model &model, const Parameters &parameters) {
    std::vector<Entry> entries;
    for (const auto &[arrays, end] : {std::pair{parameters.gradients.get(), ""},
                                      std::pair{parameters.masters.get(), ".value"}}) {
        for (size_t i = 0; i < arrays->count(); i++) {
            const Learning &w = parameters.weights()[i / 2];
            const Arrays *from = arrays;
            if (i % 2 == 0) {
                entries.push_back({w.name + ".lora_a" + end, GGML_TYPE_F32, model.facts.in(w.role),
                                   w.rank, [from, i] { return from->read(i); }});
                continue;
            }
            const int64_t out = model.facts.out(w.role), rank = w.rank;
            entries.push_back({w.name + ".lora_b" + end, GGML_TYPE_F32, rank, out,
                               [from, i, rank, out] { return turned(from->read(i), rank, out); }});
        }
    }
    write_gguf(path, "the gradient", adapter_header(model, {}), entries);
}

}  // namespace worker::tune
