// `write`: chats that the model writes itself, both sides of them, for replay.
//
// As edgepack/calibration/self_text.py does for `edgepack finetune`: the chat template's opening
// is given, and the model writes the question and the answer, at temperature 1 without tokens
// less than a twentieth as likely as the likeliest. Without a template they are documents that
// begin with a random token.

#include <algorithm>
#include <cstdio>
#include <deque>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "chat.h"
#include "sampler.h"

namespace worker {
namespace {

constexpr int AT_ONCE = 8;  // texts: so many keys and values are in memory
constexpr int64_t MOST_COUNT = 4096, MOST_TOKENS = 4096;
constexpr int VERSION = 1;
constexpr const char *QUESTION = "\x01QUESTION\x01", *ANSWER = "\x01" "ANSWER\x01";

// Tokens that the chat template puts before a question and before an answer; nothing for a model
// without a template that can be used.
std::vector<Ids> script_of(const Session &session) {
    if (!session.chat_template().exists()) return {};
    std::string text;
    try {
        text = joined(session.chat_template().render(
            {{"user", QUESTION}, {"assistant", ANSWER}}, false));
    } catch (const Failure &) {
        return {};
    }
    const size_t question = text.find(QUESTION);
    const size_t between = question + std::string(QUESTION).size();
    const size_t answer = text.find(ANSWER, question == std::string::npos ? question : between);
    if (answer == std::string::npos) return {};
    return {session.tokens().encode(text.substr(0, question), true),
            session.tokens().encode(text.substr(between, answer - between), true)};
}

// Tokens that a document may begin with: whole characters that can be seen.
Ids openings_of(const Session &session, const llama_vocab *vocab) {
    Ids found;
    for (llama_token token = 0; token < session.tokens().size(); ++token) {
        if (llama_vocab_get_attr(vocab, token) != LLAMA_TOKEN_ATTR_NORMAL) continue;
        const std::string bytes = session.tokens().bytes(token);
        const size_t start = bytes.find_first_not_of(' ');
        if (start == std::string::npos || static_cast<unsigned char>(bytes[start]) <= ' ') continue;
        const json text = bytes.substr(start);
        try {
            static_cast<void>(text.dump());  // throws if it is no UTF-8
        } catch (const json::exception &) {
            continue;
        }
        found.push_back(token);
    }
    if (found.empty()) throw Failure("the model's vocabulary has no text to begin with");
    return found;
}

// A text being written: forced tokens first, then the model's.
class Text {
  public:
    Text(const std::vector<Ids> &script, const Ids &openings, uint32_t seed)
        : script_(script), openings_(openings), random_(seed) {}

    // The next token, where the model proposes one. Where its turn ends the other side begins.
    llama_token next(llama_token proposed, bool ends) {
        if (ids.empty() || (forced_.empty() && ends)) {
            start_turn();
            if (!ids.empty() && forced_.front() == proposed) {  // just written by the model
                forced_.pop_front();
                ids.push_back(proposed);
                return proposed;
            }
        }
        if (!forced_.empty()) {
            proposed = forced_.front();
            forced_.pop_front();
        }
        ids.push_back(proposed);
        return proposed;
    }

    Ids ids;

  private:
    void start_turn() {
        const Ids *turn = script_.empty() ? nullptr : &script_[turn_++ % script_.size()];
        if (turn && !turn->empty())
            forced_.insert(forced_.end(), turn->begin(), turn->end());
        else
            forced_.push_back(openings_[random_() % openings_.size()]);
    }

    const std::vector<Ids> &script_;
    const Ids &openings_;
    std::minstd_rand random_;
    std::deque<llama_token> forced_;
    size_t turn_ = 0;
};

struct Batch {
    explicit Batch(int size) : it(llama_batch_init(size, 0, 1)) {}
    ~Batch() { llama_batch_free(it); }
    Batch(const Batch &) = delete;
    Batch &operator=(const Batch &) = delete;
    llama_batch it;
};

struct Job {
    int count, tokens;
    uint32_t seed;
    std::vector<Ids> script;
    Ids openings;
};

// Write some of the texts together; nothing if it was cancelled.
std::vector<Ids> write_some(const Session &session, const Request &request, const Job &job,
                            int first, int size) {
    const Context context = session.texts_context(size, job.tokens);
    std::vector<Text> texts;
    std::vector<Sampler> samplers;
    Sampling sampling;
    sampling.temperature = 1.0;
    sampling.top_k = 0;
    sampling.top_p = 1.0;
    sampling.min_p = 0.05;
    for (int i = 0; i < size; ++i) {
        sampling.seed = (job.seed * 1000003U + static_cast<uint32_t>(first + i)) % 0xFFFFFFFEU;
        texts.emplace_back(job.script, job.openings, sampling.seed + 1);
        samplers.push_back(make_sampler(sampling, session.tokens().size()));
    }
    const Batch batch(size);
    llama_batch rows = batch.it;
    for (int position = 0; position < job.tokens; ++position) {
        if (request.cancelled()) return {};
        rows.n_tokens = size;
        for (int i = 0; i < size; ++i) {
            const llama_token proposed =
                position ? llama_sampler_sample(samplers[i].get(), context.get(), i) : -1;
            rows.token[i] = texts[i].next(proposed, position && session.tokens().ends(proposed));
            rows.pos[i] = position;
            rows.n_seq_id[i] = 1;
            rows.seq_id[i][0] = i;
            rows.logits[i] = 1;
        }
        if (llama_decode(context.get(), rows) != 0)
            throw Failure("llama.cpp cannot run the model");
        const double done = first + size * (position + 1.0) / job.tokens;
        if (position % 8 == 7) request.event("progress", {{"share", done / job.count}});
    }
    std::vector<Ids> found;
    for (Text &text : texts) found.push_back(std::move(text.ids));
    return found;
}

// A file that appears when it is whole.
void save(const std::string &path, const std::vector<Ids> &texts) {
    const std::string partial = path + ".partial";
    {
        std::ofstream file(partial, std::ios::binary);
        file << json{{"version", VERSION}, {"texts", texts}}.dump();
        file.close();
        if (!file) {
            remove(partial.c_str());
            throw Failure("the texts cannot be written", "there may be no room left");
        }
    }
    if (rename(partial.c_str(), path.c_str()) != 0) {
        remove(partial.c_str());
        throw Failure("the texts cannot be written where they should be");
    }
}

}  // namespace

Last write_chats(Session &session, const Request &request) {
    const Fields fields(request.fields);
    const std::string out = fields.file("out");
    Job job{static_cast<int>(fields.integer("count", 16, 1, MOST_COUNT)),
            static_cast<int>(fields.integer("tokens", 129, 2, MOST_TOKENS)),
            static_cast<uint32_t>(fields.integer("seed", 0, 0, 0xFFFFFFFE)), script_of(session),
            openings_of(session, session.vocabulary())};
    std::vector<Ids> texts;
    while (static_cast<int>(texts.size()) < job.count) {
        const int first = static_cast<int>(texts.size());
        auto some = write_some(session, request, job, first, std::min(AT_ONCE, job.count - first));
        if (some.empty()) break;
        for (Ids &text : some) texts.push_back(std::move(text));
    }
    if (texts.empty()) throw Failure("it was cancelled before a text was written");
    save(out, texts);
    size_t tokens = 0;
    for (const Ids &text : texts) tokens += text.size();
    return {"written", {{"count", texts.size()}, {"tokens", tokens}}};
}

}  // namespace worker
