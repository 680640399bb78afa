#include "template.h"

#include <algorithm>
#include <cctype>
#include <utility>

#include "fields.h"
#include "renderer.h"

namespace worker {
namespace {

constexpr const char *KEY = "tokenizer.chat_template";
constexpr const char *DEFAULT = "default";
constexpr const char *TAKE_ANOTHER = "take the model with the chat template published for it";
constexpr size_t ROLE_CHARACTERS = 32;

// What a C function writes into a buffer; nothing if it returns a length below 0.
template <typename Write>
std::string written(const Write &write) {
    const int32_t size = write(nullptr, 0);
    if (size < 0) return "";
    std::string found(static_cast<size_t>(size) + 1, '\0');
    write(found.data(), found.size());
    found.pop_back();
    return found;
}

std::string metadata(const llama_model *model, const std::string &key) {
    return written([&](char *buffer, size_t size) {
        return llama_model_meta_val_str(model, key.c_str(), buffer, size);
    });
}

// The template for chats, as edgepack/checkpoint/templates.py chooses it: the one without a name,
// else the one called `default`, else the only one.
std::string choose(const llama_model *model) {
    if (std::string only = metadata(model, KEY); !only.empty()) return only;
    std::vector<std::string> named;
    for (int32_t i = 0; i < llama_model_meta_count(model); ++i) {
        const std::string key = written([&](char *buffer, size_t size) {
            return llama_model_meta_key_by_index(model, i, buffer, size);
        });
        const std::string start = std::string(KEY) + ".";
        if (key.rfind(start, 0) == 0) named.push_back(key.substr(start.size()));
    }
    if (named.empty()) return "";
    const bool has_default = std::find(named.begin(), named.end(), DEFAULT) != named.end();
    if (named.size() > 1 && !has_default)
        throw Failure("the model has " + std::to_string(named.size()) +
                          " chat templates and none of them is the default",
                      TAKE_ANOTHER);
    return metadata(model, std::string(KEY) + "." + (has_default ? DEFAULT : named[0]));
}

json names_of(const llama_model *model) {
    const llama_vocab *vocab = llama_model_get_vocab(model);
    const auto text = [&](llama_token token) {
        return token >= 0 ? std::string(llama_vocab_get_text(vocab, token)) : "";
    };
    return {{"bos_token", text(llama_vocab_bos(vocab))},
            {"eos_token", text(llama_vocab_eos(vocab))},
            {"pad_token", text(llama_vocab_pad(vocab))},
            {"sep_token", text(llama_vocab_sep(vocab))}};
}

std::vector<Part> without_template(const std::vector<Message> &messages, bool goes_on) {
    std::vector<Part> parts;
    for (const Message &message : messages) {
        if (!parts.empty()) parts.push_back({"\n\n", false});
        parts.push_back({message.content, true});
    }
    if (goes_on) parts.push_back({"\n\n", false});
    return parts;
}

// A role is part of the template's own text, where it may stand inside a control token.
bool is_role(const std::string &role) {
    return !role.empty() && role.size() <= ROLE_CHARACTERS &&
           std::all_of(role.begin(), role.end(), [](unsigned char c) {
               return std::isalnum(c) || c == '_' || c == '-';
           });
}

}  // namespace

std::string joined(const std::vector<Part> &parts) {
    std::string text;
    for (const Part &part : parts) text += part.text;
    return text;
}

std::vector<Message> read_messages(const json &list) {
    if (!list.is_array()) throw Failure("messages should be a list");
    std::vector<Message> messages;
    for (const json &item : list) {
        const std::string place = "messages[" + std::to_string(messages.size()) + "]";
        if (!item.is_object()) throw Failure(place + " should be an object");
        const Fields fields(item, place + ".");
        const std::string role = fields.text("role");
        if (!is_role(role)) throw Failure(place + ".role should be user, assistant or system");
        messages.push_back({role, fields.text("content")});
    }
    if (messages.empty()) throw Failure("there are no messages");
    return messages;
}

Template::Template(const llama_model *model) : Template("", names_of(model)) {
    try {
        source_ = choose(model);
    } catch (const Failure &failure) {
        problem_ = std::make_unique<Failure>(failure);
    }
}

Template::Template(std::string source, json names)
    : source_(std::move(source)), names_(std::move(names)) {}

Template::~Template() = default;

bool Template::exists() const { return !source_.empty() || problem_; }

std::vector<Part> Template::render(const std::vector<Message> &messages,
                                   bool add_generation_prompt) const {
    if (problem_) throw *problem_;
    if (source_.empty()) return without_template(messages, add_generation_prompt);
    if (!renderer_) renderer_ = std::make_unique<Renderer>(source_, names_);
    Renderer::Answer answer = renderer_->ask(messages, add_generation_prompt);
    const std::string reason = shorten(answer.reason, 200);
    switch (answer.kind) {
        case Renderer::Kind::rendered:
            return std::move(answer.parts);
        case Renderer::Kind::refused:
            throw Failure("the chat template refuses the messages: " + reason,
                          "send what it asks for");
        default:
            throw Failure("the chat template cannot be rendered: " + reason, TAKE_ANOTHER);
    }
}

}  // namespace worker
