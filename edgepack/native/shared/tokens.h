// A model's vocabulary: text to tokens and back, BOS, the ends of an answer.

#pragma once

#include <string>
#include <unordered_set>
#include <vector>

#include "llama.h"
#include "template.h"

namespace worker {

using Ids = std::vector<llama_token>;

class Tokens {
  public:
    // Of a loaded model; its weights may have been left out (`vocab_only`).
    explicit Tokens(const llama_model *model);

    // Tokens of a rendered text, as of one text: pieces meet as if they were never apart. Control
    // tokens are read in what the template wrote, not in what was typed. No BOS is added.
    Ids encode(const std::vector<Part> &parts) const;

    // Tokens of a text, with control tokens in it where `special`.
    Ids encode(const std::string &text, bool special) const;

    // The same tokens with exactly one BOS first, where the model adds one
    // (edgepack/runtimes/chat.py: prompt).
    Ids with_bos(Ids ids) const;

    // Whether a token ends an answer: llama.cpp's, and those of the key edgepack.eos_token_ids.
    bool ends(llama_token token) const;

    // The bytes of a token, not always whole characters; none of a control token.
    std::string bytes(llama_token token) const;

    int size() const { return size_; }
    llama_token bos() const { return bos_; }  // −1: the model adds none

  private:
    Ids tokenize(const std::string &text, bool special) const;
    Ids continued(const std::string &text) const;
    void check(const std::string &text) const;

    const llama_vocab *vocab_;
    int size_;
    llama_token bos_ = -1;
    std::unordered_set<llama_token> more_ends_;
    std::vector<std::string> control_;            // texts of tokens that only a template may write
    std::vector<int> missing_;                    // bytes that a sentencepiece model cannot encode
    std::unordered_set<std::string> characters_;  // those that it can, where bytes are missing
};

}  // namespace worker
