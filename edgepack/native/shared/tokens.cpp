#include "tokens.h"

#include <algorithm>
#include <cctype>
#include <cstdio>
#include <sstream>

#include "fields.h"

namespace worker {
namespace {

constexpr const char *MORE_ENDS = "edgepack.eos_token_ids";
constexpr int NOT_TYPED = LLAMA_TOKEN_ATTR_CONTROL | LLAMA_TOKEN_ATTR_UNKNOWN;

size_t character_bytes(const std::string &text, size_t at) {
    size_t end = at + 1;
    while (end < text.size() && (text[end] & 0xC0) == 0x80) ++end;
    return end - at;
}

// [from, to) of a text that was typed.
struct Range {
    size_t from, to;
};

std::vector<Range> typed_ranges(const std::vector<Part> &parts) {
    std::vector<Range> found;
    size_t at = 0;
    for (const Part &part : parts) {
        if (part.typed && !part.text.empty()) found.push_back({at, at + part.text.size()});
        at += part.text.size();
    }
    return found;
}

}  // namespace

Tokens::Tokens(const llama_model *model) : vocab_(llama_model_get_vocab(model)) {
    size_ = llama_vocab_n_tokens(vocab_);
    if (llama_vocab_get_add_bos(vocab_)) bos_ = llama_vocab_bos(vocab_);
    char text[4096];
    if (llama_model_meta_val_str(model, MORE_ENDS, text, sizeof text) > 0) {
        std::istringstream ids(text);
        for (llama_token id; ids >> id;) more_ends_.insert(id);
    }
    const bool pieces = llama_vocab_type(vocab_) == LLAMA_VOCAB_TYPE_SPM;
    std::unordered_set<std::string> known;
    for (llama_token token = 0; token < size_; ++token) {
        const std::string name = llama_vocab_get_text(vocab_, token);
        if (llama_vocab_get_attr(vocab_, token) & NOT_TYPED) {
            if (name.size() > character_bytes(name, 0)) control_.push_back(name);
        } else if (pieces && !name.empty() && name.size() == character_bytes(name, 0)) {
            characters_.insert(name == "▁" ? " " : name);
        }
        if (pieces) known.insert(name);
    }
    for (int byte = 0; pieces && byte < 256; ++byte) {
        char name[8];
        snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
        if (!known.count(name) && !known.count(std::string(1, static_cast<char>(byte))))
            missing_.push_back(byte);
    }
}

Ids Tokens::encode(const std::vector<Part> &parts) const {
    const std::string text = joined(parts);
    const auto typed = typed_ranges(parts);
    // A control token that reaches into what was typed is cut after its first character, so that
    // it is none. Everything else is as in the whole text.
    std::vector<size_t> cuts;
    for (const std::string &name : control_) {
        for (size_t at = text.find(name); at != std::string::npos; at = text.find(name, at + 1)) {
            const auto reaches = [&](const Range &range) {
                return at < range.to && at + name.size() > range.from;
            };
            if (std::any_of(typed.begin(), typed.end(), reaches))
                cuts.push_back(at + character_bytes(text, at));
        }
    }
    std::sort(cuts.begin(), cuts.end());
    cuts.push_back(text.size());
    Ids found;
    size_t start = 0;
    for (const size_t cut : cuts) {
        if (cut == start) continue;
        const std::string piece = text.substr(start, cut - start);
        const Ids ids = start ? continued(piece) : encode(piece, true);
        found.insert(found.end(), ids.begin(), ids.end());
        start = cut;
    }
    return found;
}

// Tokens of a text that goes on. Sentencepiece puts a space before every text; behind a line
// feed, whose tokens are known, it does not.
Ids Tokens::continued(const std::string &text) const {
    const auto type = llama_vocab_type(vocab_);
    if (type == LLAMA_VOCAB_TYPE_SPM || type == LLAMA_VOCAB_TYPE_UGM) {
        const Ids before = encode("\n", true), all = encode("\n" + text, true);
        if (all.size() > before.size() && std::equal(before.begin(), before.end(), all.begin()))
            return {all.begin() + static_cast<std::ptrdiff_t>(before.size()), all.end()};
    }
    return encode(text, true);
}

Ids Tokens::encode(const std::string &text, bool special) const {
    check(text);
    Ids found = tokenize(text, special);
    for (const llama_token id : found)
        if (id < 0 || id >= size_) throw Failure("the model's vocabulary is damaged");
    return found;
}

Ids Tokens::tokenize(const std::string &text, bool special) const {
    Ids found(text.size() + 2);  // a token has at least a byte
    for (;;) {
        const int32_t size =
            llama_tokenize(vocab_, text.data(), static_cast<int32_t>(text.size()), found.data(),
                           static_cast<int32_t>(found.size()), false, special);
        if (size == INT32_MIN) throw Failure("the text is too long");
        const bool fits = size >= 0;
        found.resize(static_cast<size_t>(fits ? size : -size));
        if (fits) return found;
    }
}

// llama.cpp throws, or ends the process, at a character if neither it nor its bytes are tokens.
void Tokens::check(const std::string &text) const {
    if (missing_.empty()) return;
    for (size_t at = 0; at < text.size();) {
        const std::string character = text.substr(at, character_bytes(text, at));
        at += character.size();
        if (characters_.count(character)) continue;
        for (const char c : character) {
            const int byte = static_cast<unsigned char>(c);
            if (std::binary_search(missing_.begin(), missing_.end(), byte))
                throw Failure("the model has no token for “" + shorten(character, 4) + "”",
                              "write it in another way");
        }
    }
}

Ids Tokens::with_bos(Ids ids) const {
    if (bos_ < 0) return ids;
    if (std::find(ids.begin(), ids.end(), bos_) == ids.end()) ids.insert(ids.begin(), bos_);
    while (ids.size() > 1 && ids[0] == bos_ && ids[1] == bos_) ids.erase(ids.begin());
    return ids;
}

bool Tokens::ends(llama_token token) const {
    return llama_vocab_is_eog(vocab_, token) || more_ends_.count(token) > 0;
}

std::string Tokens::bytes(llama_token token) const {
    std::string found(64, '\0');
    for (;;) {
        const int32_t size = llama_token_to_piece(vocab_, token, found.data(),
                                                  static_cast<int32_t>(found.size()), 0, false);
        const bool fits = size >= 0;
        found.resize(static_cast<size_t>(fits ? size : -size));
        if (fits) return found;
    }
}

}  // namespace worker
