// `chat` and `render`.

#include <string>
#include <vector>

#include "chat.h"
#include "prompt.h"
#include "sampler.h"
#include "stream.h"

namespace worker {
namespace {

constexpr int64_t MOST_TOKENS = 1 << 20;
constexpr double MOST_SCALE = 100.0;
constexpr size_t MOST_STOPS = 16, MOST_STOP_BYTES = 1024;

struct Options {
    std::vector<Message> messages;
    Scales scales;
    Sampling sampling;
    int max_tokens;
    std::vector<std::string> stops;
};

Options read_options(const Request &request) {
    const Fields fields(request.fields);
    Options found{read_messages(fields.array("messages")),
                  fields.numbers("scales", -MOST_SCALE, MOST_SCALE), read_sampling(fields),
                  static_cast<int>(fields.integer("max_tokens", 256, 1, MOST_TOKENS)),
                  fields.texts("stop")};
    if (found.stops.size() > MOST_STOPS) throw Failure("stop has more than 16 texts");
    for (const std::string &stop : found.stops)
        if (stop.empty() || stop.size() > MOST_STOP_BYTES)
            throw Failure("stop should be texts of 1 to 1024 bytes");
    return found;
}

double rate(double count, double seconds) { return seconds > 0.0 ? count / seconds : 0.0; }

// An answer while it is made.
struct Answer {
    const char *reason = "cancelled";
    int tokens = 0;
    double first = 0.0, all = 0.0;  // seconds until the first token, and in all
};

Answer write_answer(Session &session, const Request &request, const Options &options,
                    const Clock &clock) {
    const Cancelled cancelled = [&] { return request.cancelled(); };
    const Sampler sampler = make_sampler(options.sampling, session.tokens().size());
    Stream stream(options.stops);
    const auto send = [&](const std::string &text) {
        if (!text.empty()) request.event("text", {{"text", text}});
    };
    Answer answer;
    while (!cancelled()) {
        session.check_logits();
        const llama_token token = llama_sampler_sample(sampler.get(), session.last(), -1);
        if (++answer.tokens == 1) answer.first = clock.seconds();
        if (session.tokens().ends(token)) {
            --answer.tokens;
            answer.reason = "end";
            break;
        }
        send(stream.push(session.tokens().bytes(token)));
        const char *full = stream.stopped()                      ? "stop"
                           : answer.tokens >= options.max_tokens ? "length"
                           : session.is_full(1)                  ? "context"
                                                                 : nullptr;
        if (full) {
            answer.reason = full;
            break;
        }
        if (!session.append(token, cancelled)) break;
    }
    send(stream.finish());
    answer.all = clock.seconds();
    return answer;
}

}  // namespace

Last chat(Session &session, const Request &request) {
    const Clock clock;
    const Options options = read_options(request);
    session.scale(options.scales);
    const Prompt prompt = make_prompt(session, options.messages, options.max_tokens);
    const size_t length = prompt.ids.size();
    const size_t cached = session.go_back(prompt.ids);
    request.event("started", {{"prompt_tokens", length},
                              {"cached_tokens", cached},
                              {"dropped_messages", prompt.dropped}});
    const Clock prompt_clock;
    const bool whole = session.run(prompt.ids, [&] { return request.cancelled(); });
    const double prompt_seconds = prompt_clock.seconds();
    Answer answer;
    if (whole) answer = write_answer(session, request, options, clock);
    const double seconds = answer.all - answer.first;
    return {"ended",
            {{"reason", answer.reason},
             {"tokens", answer.tokens},
             {"prompt_tokens", length},
             {"cached_tokens", cached},
             {"prompt_tokens_per_second",
              whole ? rate(static_cast<double>(length - cached), prompt_seconds) : 0.0},
             {"tokens_per_second", answer.tokens > 1 ? rate(answer.tokens - 1, seconds) : 0.0},
             {"first_token_seconds", answer.first},
             {"memory", memory()}}};
}

Last render(Session &session, const Request &request) {
    const Fields fields(request.fields);
    const auto messages = read_messages(fields.array("messages"));
    const bool starts_answer = fields.flag("add_generation_prompt", true);
    const auto parts = session.chat_template().render(messages, starts_answer);
    const Tokens &tokens = session.tokens();
    return {"rendered",
            {{"text", joined(parts)}, {"tokens", tokens.with_bos(tokens.encode(parts))}}};
}

}  // namespace worker
