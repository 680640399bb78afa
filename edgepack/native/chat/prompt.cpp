#include "prompt.h"

#include <algorithm>
#include <cstddef>
#include <string>

#include "../shared/fields.h"

namespace worker {
namespace {

// Indices of messages that a conversation may begin with, after the system's: 0 dropped first.
std::vector<size_t> starts_of(const std::vector<Message> &messages, size_t systems) {
    std::vector<size_t> starts{systems};
    for (size_t i = systems + 1; i < messages.size(); ++i)
        if (messages[i].role == "user") starts.push_back(i);
    if (starts.back() + 1 < messages.size() && messages.back().role != "assistant")
        starts.push_back(messages.size() - 1);
    return starts;
}

Ids tokens_from(const Session &session, const std::vector<Message> &messages, size_t systems,
                size_t start) {
    std::vector<Message> kept(messages.begin(),
                              messages.begin() + static_cast<std::ptrdiff_t>(systems));
    kept.insert(kept.end(), messages.begin() + static_cast<std::ptrdiff_t>(start), messages.end());
    const Tokens &tokens = session.tokens();
    return tokens.with_bos(tokens.encode(session.chat_template().render(kept, true)));
}

}  // namespace

Prompt make_prompt(Session &session, const std::vector<Message> &messages, int max_tokens) {
    size_t systems = 0;
    while (systems + 1 < messages.size() && messages[systems].role == "system") ++systems;
    const auto starts = starts_of(messages, systems);
    const auto context = static_cast<size_t>(session.context());
    const size_t room = std::min(static_cast<size_t>(max_tokens), context / 4);
    const size_t fits = context - std::max<size_t>(1, room);  // with an answer of some length

    const auto from = [&](size_t start) { return tokens_from(session, messages, systems, start); };
    const auto prompt = [&](Ids ids, size_t start) {
        session.kept_from = static_cast<int>(start);
        return Prompt{std::move(ids), static_cast<int>(start - systems)};
    };
    Ids all = from(starts.front());
    if (all.empty()) throw Failure("the chat template makes nothing of the messages");
    if (all.size() <= fits || (starts.size() == 1 && all.size() < context))
        return prompt(std::move(all), starts.front());

    // What was kept the last time is in the model's memory.
    const auto last = static_cast<size_t>(session.kept_from);
    if (last > starts.front() && std::find(starts.begin(), starts.end(), last) != starts.end()) {
        Ids ids = from(last);
        if (ids.size() <= fits) return prompt(std::move(ids), last);
    }
    // Half of the context is freed at once, so that not every question runs everything again.
    size_t first = 1, end = starts.size() - 1;
    while (first < end) {
        const size_t middle = (first + end) / 2;
        if (from(starts[middle]).size() <= std::min(fits, context / 2))
            end = middle;
        else
            first = middle + 1;
    }
    const size_t start = starts[std::min(first, starts.size() - 1)];
    Ids ids = from(start);
    if (ids.size() >= context)
        throw Failure("the last message has " + std::to_string(ids.size()) +
                          " tokens with what the model puts around it, and " +
                          std::to_string(context - 1) + " fit",
                      "shorten it, or load the model with a larger context");
    return prompt(std::move(ids), start);
}

}  // namespace worker
