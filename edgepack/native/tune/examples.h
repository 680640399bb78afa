// Rows of a person's examples → token ids, and which of them are to be learnt
// (edgepack/finetune/examples.py).
//
// Only answers are learnt; plain texts as a whole. Messages go through the model's own chat
// template, and prompt and answer are tokenized apart, because a runtime tokenizes the prompt alone
// too.

#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../shared/fields.h"
#include "options.h"

namespace worker::tune {

constexpr int32_t IGNORED = -100;  // the label of a position that is not learnt

struct Example {
    std::vector<int32_t> ids, labels;  // labels: for every position the token to predict there

    size_t answers() const;
};

struct Examples {
    std::vector<Example> examples;
    std::vector<std::string> skipped;  // errors of rows that were left out

    size_t longest() const;
};

// Those of a request's `examples` or `data`. The model's vocabulary is in memory meanwhile.
Examples read_examples(const std::string &model, const Fields &request, const Options &options,
                       int64_t vocab);

// Chats that the model wrote itself, of the file that `write` made: every token is learnt.
std::vector<Example> read_replay(const std::string &path, int64_t vocab);

}  // namespace worker::tune
