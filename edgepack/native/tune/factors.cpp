#include "factors.h"

#include <cmath>

#include "../shared/fields.h"

namespace worker::tune {
namespace {

constexpr const char *ALPHA = "adapter.lora.alpha";

[[noreturn]] void refuse(const std::string &tensor) {
    throw Failure("the factors' " + shorten(tensor, 60) + " does not fit the model",
                  "these factors were made for another model");
}

Factor pair_of(const WeightFile &gguf, const std::string &weight, const Stored &W) {
    const auto a = gguf.tensors.find(weight + ".lora_a"), b = gguf.tensors.find(weight + ".lora_b");
    if (a == gguf.tensors.end() || b == gguf.tensors.end()) refuse(weight);
    Factor found{a->second, b->second};
    if (found.A.columns != W.columns || found.B.rows != W.rows || found.A.rows != found.B.columns ||
        found.rank() < 1 || found.rank() > 1 << 16)
        refuse(weight);
    for (const Stored *part : {&found.A, &found.B})
        if (part->type != GGML_TYPE_F32 && !ggml_get_type_traits(part->type)->to_float)
            refuse(weight);
    // llama.cpp's rule: alpha / rank, or 1 where alpha is 0
    const double alpha = number_of(*gguf.header, ALPHA, 0);
    if (alpha != 0) found.scale = static_cast<float>(alpha / found.rank());
    return found;
}

}  // namespace

Factors::Factors(const std::string &path, const Model &model) {
    gguf_ = WeightFile::open(path, "the factors' file");
    if (gguf_.header->architecture() != model.facts.architecture)
        throw Failure("the factors are of another family than the model",
                      "these factors were made for another model");
    layers_.resize(model.layers.size());
    size_t taken = 0;
    const auto take = [&](const std::string &weight, const Stored &W, std::optional<Factor> &to) {
        if (!gguf_.tensors.count(weight + ".lora_a") && !gguf_.tensors.count(weight + ".lora_b"))
            return;
        to = pair_of(gguf_, weight, W);
        taken += 2;
    };
    for (size_t i = 0; i < layers_.size(); i++)
        for (int role = 0; role < ROLES; role++)
            take("blk." + std::to_string(i) + "." + ROLE_NAMES[role].gguf + ".weight",
                 model.layers[i].weights[role], layers_[i][role]);
    if (!model.tied) take("output.weight", model.head, head_);
    if (taken != gguf_.tensors.size())
        throw Failure("the factors belong to weights that the model does not have",
                      "these factors were made for another model");
    gguf_.header.reset();
}

const Factor *Factors::find(int64_t layer, Role role) const {
    if (!any() || !layers_[layer][role]) return nullptr;
    return &*layers_[layer][role];
}

std::vector<float> Factors::A(const Factor &factor) const { return gguf_.values(factor.A); }

std::vector<float> Factors::B(const Factor &factor) const {
    return turned(gguf_.values(factor.B), factor.B.rows, factor.B.columns);
}

std::vector<uint8_t> Factors::bytes(const Stored &tensor) const {
    std::vector<uint8_t> found(tensor.row_bytes() * tensor.rows);
    gguf_.file->read(found.data(), found.size(), tensor.offset);
    return found;
}

std::vector<float> turned(const std::vector<float> &x, int64_t rows, int64_t columns) {
    std::vector<float> found(x.size());
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) found[j * rows + i] = x[i * columns + j];
    return found;
}

}  // namespace worker::tune
