#include "model_check.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <optional>
#include <unordered_set>
#include <vector>

#include "fields.h"

namespace worker {
namespace {

constexpr int64_t MAX_BLOCKS = 512, MAX_EXPERTS = 512;  // llama.cpp's
constexpr const char *DIGEST = "edgepack.base.digest";
constexpr const char *HOLDS_FACTORS = "edgepack.holds_factors";
constexpr const char *HINT =
    "the file is damaged, or another program wrote what llama.cpp does not take";

[[noreturn]] void refuse(const GgufFile &file, const std::string &message) {
    throw Failure(file.what() + ": " + shorten(message, 200), HINT);
}

// Files that are neither models nor adapters.
struct OtherKind {
    const char *type, *architecture, *name;
};

const OtherKind OTHER_KINDS[] = {
    {"mmproj", "clip", "the part of a model that sees or hears, which cannot chat alone"},
    {"imatrix", "imatrix", "a matrix of importances, no model"},
    {"vocab", "vocab", "a vocabulary, no model"},
    {"control-vector", "controlvector", "a control vector, no model"},
};

// What a key must be, if the file has it.
struct Rule {
    const char *key;  // behind the architecture's name, where `of_architecture`
    bool of_architecture;
    std::function<bool(const GgufFile &, const std::string &)> holds;
    const char *expected;
};

bool is_whole(gguf_type type) {
    return type != GGUF_TYPE_FLOAT32 && type != GGUF_TYPE_FLOAT64 && type != GGUF_TYPE_STRING &&
           type != GGUF_TYPE_BOOL;
}

bool is_epsilon(const GgufFile &file, const std::string &key) {
    return !file.is_list(key) && file.type(key) == GGUF_TYPE_FLOAT32 &&
           std::isfinite(*file.number(key)) && *file.number(key) >= 0;
}

bool is_finite(const GgufFile &file, const std::string &key) {
    return !file.is_list(key) && file.type(key) == GGUF_TYPE_FLOAT32 &&
           std::isfinite(*file.number(key));
}

bool is_block_count(const GgufFile &file, const std::string &key) {
    return !file.is_list(key) && is_whole(file.type(key)) && *file.integer(key) >= 1 &&
           *file.integer(key) <= MAX_BLOCKS;
}

bool is_text(const GgufFile &file, const std::string &key) { return file.text(key).has_value(); }

bool is_scaling(const GgufFile &file, const std::string &key) {
    const auto found = file.text(key);
    return found == "none" || found == "linear" || found == "yarn" || found == "longrope";
}

const Rule MODEL_RULES[] = {
    {"general.architecture", false, is_text, "a text"},
    {"tokenizer.chat_template", false, is_text, "a text"},
    {"block_count", true, is_block_count, "1 to 512"},
    {"attention.layer_norm_rms_epsilon", true, is_epsilon, "a number ≥ 0"},
    {"attention.layer_norm_epsilon", true, is_epsilon, "a number ≥ 0"},
    {"attention.group_norm_epsilon", true, is_epsilon, "a number ≥ 0"},
    {"rope.freq_base", true, is_finite, "a finite number"},
    {"rope.scaling.factor", true, is_finite, "a finite number"},
    {"rope.scaling.type", true, is_scaling, "none, linear, yarn or longrope"},
};
const Rule ADAPTER_RULES[] = {
    {"general.architecture", false, is_text, "a text"},
    {"adapter.type", false,
     [](const GgufFile &file, const std::string &key) { return file.text(key) == "lora"; },
     "“lora”"},
    {"adapter.lora.alpha", false, is_finite, "a finite number"},
    {"adapter.lora.task_name", false, is_text, "a text"},
    {"adapter.lora.prompt_prefix", false, is_text, "a text"},
};

template <size_t n>
void check_rules(const GgufFile &file, const Rule (&rules)[n]) {
    for (const Rule &rule : rules) {
        const std::string key =
            rule.of_architecture ? file.architecture() + "." + rule.key : rule.key;
        if (file.has(key) && !rule.holds(file, key))
            refuse(file, shorten(key, 80) + " should be " + rule.expected);
    }
}

bool is_weight(ggml_type type) {  // of a type that some matrix product accepts
    switch (type) {
        case GGML_TYPE_I8:
        case GGML_TYPE_I16:
        case GGML_TYPE_I32:
        case GGML_TYPE_I64:
        case GGML_TYPE_F64:
        case GGML_TYPE_Q8_1:
        case GGML_TYPE_Q8_K: return false;
        default: return true;
    }
}

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() &&
           text.compare(text.size() - end.size(), end.size(), end) == 0;
}

void check_tensors(const GgufFile &file) {
    for (const auto &[name, tensor] : file.tensors()) {
        const std::string shown = shorten(name, 80);
        if (tensor.elements == 0) refuse(file, shown + " is empty");
        const bool vector = tensor.shape.size() < 2;
        if (vector && tensor.type != GGML_TYPE_F32 &&
            (ends_with(name, "norm.weight") || ends_with(name, ".bias")))
            refuse(file, shown + " is not F32; llama.cpp takes norms and biases as F32");
        if (!vector && ends_with(name, ".weight") && !is_weight(tensor.type))
            refuse(file, shown + " is of a type that nothing multiplies");
    }
}

void check_counts(const GgufFile &file) {
    const int64_t experts = file.count("expert_count"), used = file.count("expert_used_count");
    if (experts < 0 || experts > MAX_EXPERTS || used > experts || (experts > 0 && used < 1))
        refuse(file, "expert_used_count should be 1 to expert_count");
    const std::string key = file.architecture() + ".attention.head_count_kv";
    const auto heads = file.integers(key);
    for (size_t block = 0; block < heads.size(); ++block) {
        const std::string queries = "blk." + std::to_string(block) + ".attn_q.weight";
        if (heads[block] == 0 && file.tensors().count(queries))
            refuse(file, "a block with queries has no keys");
    }
}

void check_vocabulary(const GgufFile &file) {
    const std::string kind = file.text("tokenizer.ggml.model").value_or("none");
    if (kind == "none" || kind == "no_vocab") refuse(file, "it has no vocabulary");
    const auto tokens = file.texts("tokenizer.ggml.tokens");
    if (tokens.empty()) refuse(file, "tokenizer.ggml.tokens should be a list of texts");
    std::unordered_set<std::string> seen;
    for (const std::string &token : tokens)  // empty ones get names of their own
        if (!token.empty() && !seen.insert(token).second)
            refuse(file, "tokenizer.ggml.tokens: " + shorten(token, 40) + " is there twice");
    for (const char *key : {"tokenizer.ggml.scores", "tokenizer.ggml.token_type"}) {
        if (!file.has(key)) continue;
        const auto type = file.type(key);
        const bool fits = type == GGUF_TYPE_FLOAT32 || type == GGUF_TYPE_INT32 ||
                          type == GGUF_TYPE_UINT32;
        if (!file.is_list(key) || !fits || file.length(key) < tokens.size())
            refuse(file, std::string(key) + " should be a number of 32 bits for each token");
    }
}

// A shape without ones at its end, as a matrix; several matrices in one have a third size.
std::vector<int64_t> matrix(const GgufFile::Tensor &tensor) {
    std::vector<int64_t> shape = tensor.shape;
    while (shape.size() < 2) shape.push_back(1);
    return shape;
}

void check_pair(const GgufFile &file, const std::string &weight, const GgufFile::Tensor &a,
                const GgufFile::Tensor &b, const GgufFile &model) {
    const std::string shown = shorten(weight, 80);
    if (!is_weight(a.type) || !is_weight(b.type))
        refuse(file, "the factors of " + shown + " are of a type that nothing multiplies");
    const auto A = matrix(a), B = matrix(b);  // A [columns, rank, …], B [rank, rows, …]
    if (A.size() != B.size() || A[1] != B[0] ||
        !std::equal(A.begin() + 2, A.end(), B.begin() + 2))
        refuse(file, "the factors of " + shown + " do not fit each other");
    const auto base = model.tensors().find(weight);
    if (base == model.tensors().end())
        throw Failure(file.what() + " belongs to another model: this one has no " + shown);
    auto W = matrix(base->second);
    std::vector<int64_t> shape = A;
    shape[1] = B[1];
    while (shape.size() > W.size()) W.push_back(1);
    if (weight != "token_embd.weight" && W != shape)  // that one is stored transposed
        throw Failure(file.what() + " belongs to another model: " + shown + " has another shape");
}

}  // namespace

Kind kind_of(const GgufFile &file) {
    const std::string type = file.text("general.type").value_or("model");
    const std::string architecture = file.architecture();
    for (const OtherKind &other : OTHER_KINDS)
        if (type == other.type || architecture == other.architecture)
            throw Failure(file.what() + " is " + other.name, "choose the model's own file");
    if (file.integer("split.count").value_or(0) > 1)
        throw Failure(file.what() + " is a part of a model that is split into several files",
                      "choose a model of one file");
    if (type == "adapter") {
        const bool own = file.number("adapter.lora.alpha") == 0.0;  // edgepack's scale is in L
        return own && !file.has(DIGEST) ? Kind::factors : Kind::adapter;
    }
    if (architecture.empty()) throw Failure(file.what() + " names no architecture", HINT);
    return Kind::model;
}

void check_model(const GgufFile &file) {
    if (kind_of(file) != Kind::model)
        throw Failure(file.what() + " is an adapter, not a model", "choose the model's own file");
    if (file.tensors().empty())
        throw Failure(file.what() + " has no weights, only a vocabulary");
    const std::string start = file.architecture() + ".";
    if (file.integer(start + "attention.causal") == 0 || file.count("pooling_type") != 0)
        throw Failure(file.what() + " makes embeddings, it does not write",
                      "choose a model for chat");
    check_rules(file, MODEL_RULES);
    check_counts(file);
    check_vocabulary(file);
    check_tensors(file);
}

void check_adapter(const GgufFile &adapter, const GgufFile &model) {
    if (kind_of(adapter) == Kind::model) throw Failure(adapter.what() + " is no adapter");
    check_rules(adapter, ADAPTER_RULES);
    const std::string own = adapter.architecture(), its = model.architecture();
    if (!own.empty() && own != its)
        throw Failure(adapter.what() + " belongs to another model: its architecture is " +
                      shorten(own, 40) + ", this model's is " + shorten(its, 40));
    size_t pairs = 0;
    for (const auto &[name, tensor] : adapter.tensors()) {
        if (tensor.elements == 0) refuse(adapter, shorten(name, 80) + " is empty");
        const bool first = ends_with(name, ".lora_a");
        if (!first && !ends_with(name, ".lora_b"))
            refuse(adapter, shorten(name, 80) + " is no factor lora_a or lora_b");
        const std::string weight = name.substr(0, name.size() - 7);
        const auto other = adapter.tensors().find(weight + (first ? ".lora_b" : ".lora_a"));
        if (other == adapter.tensors().end())
            refuse(adapter, shorten(weight, 80) + " has one factor only");
        if (!first) continue;
        ++pairs;
        check_pair(adapter, weight, tensor, other->second, model);
    }
    if (pairs == 0) refuse(adapter, "it has no factors");
}

bool holds_factors(const GgufFile &adapter) { return adapter.has(HOLDS_FACTORS); }

uint64_t cache_bytes(const GgufFile &model) {
    const int64_t heads = std::max<int64_t>(1, model.count("attention.head_count"));
    const int64_t wide = model.count("embedding_length") / heads;
    const auto size_of = [&](const char *key) {
        const int64_t found = model.count(key);
        return found > 0 ? found : wide;
    };
    const int64_t keys = size_of("attention.key_length");
    const int64_t values = size_of("attention.value_length");
    const std::string name = model.architecture() + ".attention.head_count_kv";
    auto groups = model.integers(name);
    if (groups.empty())
        groups.assign(static_cast<size_t>(std::clamp<int64_t>(model.count("block_count"), 0,
                                                              MAX_BLOCKS)),
                      model.integer(name).value_or(heads));
    // where most blocks may keep little of the past
    if (model.count("attention.sliding_window") || model.count("ssm.state_size"))
        groups.resize(std::min<size_t>(1, groups.size()));
    double sum = 0;
    for (const int64_t group : groups) sum += static_cast<double>(std::max<int64_t>(0, group));
    const double bytes = 2 * sum * static_cast<double>(keys + values);
    return static_cast<uint64_t>(std::clamp(bytes, 0.0, 1e15));
}

}  // namespace worker
