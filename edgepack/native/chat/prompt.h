// A conversation → the tokens that the model sees, without turns that no longer fit.

#pragma once

#include <vector>

#include "../shared/template.h"
#include "session.h"

namespace worker {

struct Prompt {
    Ids ids;
    int dropped;  // messages that were left out
};

// Tokens of the messages up to the start of the answer. Where they and an answer do not fit into
// the context, the oldest turns are left out, never the system's message or the last one. A turn
// is a question with what follows it. If the last message alone does not fit: `Failure`.
Prompt make_prompt(Session &session, const std::vector<Message> &messages, int max_tokens);

}  // namespace worker
