#include "model.h"

#include <cmath>
#include <set>

#include "../shared/fields.h"

namespace worker::tune {

const std::array<RoleNames, ROLES> ROLE_NAMES = {{
    {"attn_q", "self_attn.q_proj"},
    {"attn_k", "self_attn.k_proj"},
    {"attn_v", "self_attn.v_proj"},
    {"attn_output", "self_attn.o_proj"},
    {"ffn_gate", "mlp.gate_proj"},
    {"ffn_up", "mlp.up_proj"},
    {"ffn_down", "mlp.down_proj"},
}};

int64_t Facts::in(Role role) const {
    return role == O ? heads * head : role == DOWN ? feed : hidden;
}

int64_t Facts::out(Role role) const {
    switch (role) {
        case Q: return heads * head;
        case K:
        case V: return kv_heads * head;
        case GATE:
        case UP: return feed;
        default: return hidden;
    }
}

namespace {

const char *const AGAIN = "convert the model again with llama.cpp's convert_hf_to_gguf.py";

struct Family {
    const char *name;
    int rope;
};
#define FAMILY(name, rope) {name, rope},
constexpr Family FAMILIES[] = {
#include "families.h"
};
#undef FAMILY

// Keys that must have no effect: block.cpp does not compute what they ask for.
constexpr const char *NEUTRAL[] = {
    "attention.scale",        "logit_scale",
    "residual_scale",         "embedding_scale",
    "attention.clamp_kqv",    "final_logit_softcapping",
    "attn_logit_softcapping",
};
constexpr const char *NONE[] = {
    "expert_count", "expert_used_count", "nextn_predict_layers", "rope.scaling.attn_factor",
    "attention.alibi_bias_max", "attention.temperature_length",
};

const Family &family_of(const std::string &architecture) {
    std::string known;
    for (const Family &family : FAMILIES) {
        if (architecture == family.name) return family;
        known += (known.empty() ? "" : ", ") + std::string(family.name);
    }
    throw Failure("models of the family " + shorten(architecture, 40) + " cannot be trained here",
                  "these can: " + known);
}

class Reader {
  public:
    Reader(const GgufFile &header, const std::string &prefix)
        : header_(header), prefix_(prefix + ".") {}

    double number(const char *key, double otherwise) const {
        return number_of(header_, prefix_ + key, otherwise);
    }

    // A dimension; it must be there unless there is another value for it.
    int64_t size(const char *key, int64_t otherwise = 0) const {
        const double found = number(key, static_cast<double>(otherwise));
        if (!(found >= 1 && found <= 1 << 20 && found == std::floor(found)))
            throw Failure("the model's " + prefix_ + key + " is missing or no size", AGAIN);
        return static_cast<int64_t>(found);
    }

    std::string text(const char *key) const { return header_.text(prefix_ + key).value_or(""); }

    void refuse_what_is_not_computed() const {
        for (const char *key : NEUTRAL) {
            const double found = number(key, 0);
            if (found != 0 && found != 1) refuse(key);
        }
        for (const char *key : NONE)
            if (number(key, 0) != 0) refuse(key);
        if (number("attention.causal", 1) != 1) refuse("attention.causal");
        if (number_of(header_, "split.count", 0) > 1)
            throw Failure("this is one part of a split model",
                          "join the parts with llama-gguf-split --merge");
    }

    [[noreturn]] void refuse(const std::string &key) const {
        throw Failure("the model uses " + prefix_ + key + ", which training here does not compute",
                      "train it with edgepack finetune, or take another model");
    }

  private:
    const GgufFile &header_;
    const std::string prefix_;
};

Facts read_facts(const WeightFile &gguf) {
    const GgufFile &header = *gguf.header;
    Facts facts;
    facts.architecture = header.architecture();
    facts.name = header.text("general.name").value_or("");
    facts.rope = family_of(facts.architecture).rope;
    const Reader reader(header, facts.architecture);
    reader.refuse_what_is_not_computed();
    facts.blocks = reader.size("block_count");
    facts.hidden = reader.size("embedding_length");
    facts.feed = reader.size("feed_forward_length");
    facts.heads = reader.size("attention.head_count");
    facts.kv_heads = reader.size("attention.head_count_kv", facts.heads);
    facts.head = reader.size("attention.key_length", facts.hidden / facts.heads);
    for (const char *key : {"attention.value_length", "rope.dimension_count"})
        if (reader.size(key, facts.head) != facts.head) reader.refuse(key);
    if (facts.heads % facts.kv_heads || facts.head % 2)
        throw Failure("the model's heads cannot be grouped", AGAIN);
    const uint64_t tokens = header.length("tokenizer.ggml.tokens");
    facts.vocab = tokens ? static_cast<int64_t>(tokens) : reader.size("vocab_size");
    facts.eps = static_cast<float>(reader.number("attention.layer_norm_rms_epsilon", 0));
    facts.rope_base = static_cast<float>(reader.number("rope.freq_base", 10000));
    const std::string scaling = reader.text("rope.scaling.type");
    if (!scaling.empty() && scaling != "linear" && scaling != "none")
        reader.refuse("rope.scaling.type: " + shorten(scaling, 20));
    const double factor = reader.number("rope.scaling.factor", reader.number("rope.scale_linear", 0));
    if (factor > 0 && scaling != "none") facts.rope_scale = static_cast<float>(1 / factor);
    if (!(facts.eps > 0 && facts.rope_base > 0 && factor >= 0))
        throw Failure("the model's norms or rotary positions have no size", AGAIN);
    facts.window = static_cast<int64_t>(reader.number("attention.sliding_window", 0));
    return facts;
}

// Takes tensors of a file by name and shape; what is left over is no part of the family.
class Taker {
  public:
    explicit Taker(const WeightFile &gguf) : gguf_(gguf) {}

    bool has(const std::string &name) const { return gguf_.tensors.count(name); }

    Stored matrix(const std::string &name, int64_t rows, int64_t columns) {
        const auto found = gguf_.tensors.find(name);
        if (found == gguf_.tensors.end()) throw Failure("the model lacks " + name, AGAIN);
        const Stored &tensor = found->second;
        if (tensor.columns != columns || tensor.rows != rows)
            throw Failure("the shape of the model's " + name + " is not what its metadata says",
                          AGAIN);
        if (tensor.type != GGML_TYPE_F32 && !ggml_get_type_traits(tensor.type)->to_float)
            throw Failure("the type of the model's " + name + " cannot be read", AGAIN);
        taken_.insert(name);
        return tensor;
    }

    std::vector<float> vector(const std::string &name, int64_t size) {
        return gguf_.values(matrix(name, 1, size));
    }

    std::vector<float> optional(const std::string &name, int64_t size) {
        return has(name) ? vector(name, size) : std::vector<float>();
    }

    void refuse_others() const {
        for (const auto &[name, _] : gguf_.tensors)
            if (!taken_.count(name))
                throw Failure("the model has a tensor that training here does not know: " +
                                  shorten(name, 60),
                              "train it with edgepack finetune, or take another model");
    }

  private:
    const WeightFile &gguf_;
    std::set<std::string> taken_;
};

Layer take_layer(Taker &take, const Facts &facts, int64_t index) {
    const std::string block = "blk." + std::to_string(index) + ".";
    Layer layer;
    for (int i = 0; i < ROLES; i++) {
        const Role role = static_cast<Role>(i);
        const std::string stem = block + ROLE_NAMES[i].gguf;
        layer.weights[i] = take.matrix(stem + ".weight", facts.out(role), facts.in(role));
        if (i < 3) layer.biases[i] = take.optional(stem + ".bias", facts.out(role));
    }
    layer.attn_norm = take.vector(block + "attn_norm.weight", facts.hidden);
    layer.ffn_norm = take.vector(block + "ffn_norm.weight", facts.hidden);
    layer.q_norm = take.optional(block + "attn_q_norm.weight", facts.head);
    layer.k_norm = take.optional(block + "attn_k_norm.weight", facts.head);
    return layer;
}

}  // namespace

Model Model::open(const std::string &path) {
    Model model;
    model.gguf = WeightFile::open(path, "the model");
    model.facts = read_facts(model.gguf);
    model.gguf.header.reset();
    const Facts &facts = model.facts;
    if (facts.blocks > static_cast<int64_t>(model.gguf.tensors.size()))
        throw Failure("the model lacks blocks that its metadata promises", AGAIN);
    Taker take(model.gguf);
    model.embedding = take.matrix("token_embd.weight", facts.vocab, facts.hidden);
    for (int64_t i = 0; i < facts.blocks; i++) model.layers.push_back(take_layer(take, facts, i));
    model.output_norm = take.vector("output_norm.weight", facts.hidden);
    model.rope_factors = take.optional("rope_freqs.weight", facts.head / 2);
    model.tied = !take.has("output.weight");
    model.head =
        model.tied ? model.embedding : take.matrix("output.weight", facts.vocab, facts.hidden);
    take.refuse_others();
    return model;
}

}  // namespace worker::tune
