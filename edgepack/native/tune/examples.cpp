#include "examples.h"

#include <algorithm>
#include <fstream>
#include <memory>

#include "../shared/template.h"
#include "../shared/tokens.h"
#include "llama.h"
#include "rows.h"

namespace worker::tune {
namespace {

constexpr const char *ASSISTANT = "assistant";
constexpr size_t MAX_REPLAY = 4096, MAX_REPLAY_TOKENS = 4096;
constexpr size_t SHOWN = 100;  // skipped rows whose errors are told

struct Segment {
    std::vector<Part> parts;
    bool learnt;
};

size_t size_of(const std::vector<Part> &parts) {
    size_t size = 0;
    for (const Part &part : parts) size += part.text.size();
    return size;
}

// The bytes from `from` up to `to` of a rendered text.
std::vector<Part> cut(const std::vector<Part> &parts, size_t from, size_t to) {
    std::vector<Part> found;
    size_t at = 0;
    for (const Part &part : parts) {
        const size_t first = std::max(from, at), last = std::min(to, at + part.text.size());
        if (first < last) found.push_back({part.text.substr(first - at, last - first), part.typed});
        at += part.text.size();
    }
    return found;
}

std::vector<Part> stripped(const std::vector<Part> &parts) {
    const std::string text = joined(parts);
    return cut(parts, 0, text.find_last_not_of(" \t\r\n\v\f") + 1);
}

bool starts_with(const std::string &text, const std::string &start) {
    return text.compare(0, start.size(), start) == 0;
}

// Messages of a model without a chat template, with empty lines between.
std::vector<Segment> plain_segments(const std::vector<Message> &messages) {
    std::vector<Segment> found;
    for (size_t i = 0; i < messages.size(); i++) {
        std::vector<Part> parts{{messages[i].content, true}};
        if (i + 1 < messages.size()) parts.push_back({"\n\n", false});
        found.push_back({parts, messages[i].role == ASSISTANT});
    }
    return found;
}

// Turns rows into examples for one model.
class Writer {
  public:
    Writer(const llama_model *model, size_t length)
        : template_(model), tokens_(model), length_(length) {
        const llama_token end = llama_vocab_eos(llama_model_get_vocab(model));
        if (end >= 0) end_.push_back(end);
        if (tokens_.bos() >= 0) bos_.push_back(tokens_.bos());
    }

    // Those of a row: one, but for long texts, and for answers that the template shows differently
    // once another turn follows.
    std::vector<Example> examples(const Row &row, const std::string &place) const {
        if (row.messages.empty()) return pieces(row.text, place);
        std::vector<Example> found;
        for (const auto &segments : segments_of(row.messages, place))
            found.push_back(example(segments, place));
        return found;
    }

  private:
    std::vector<Example> pieces(const std::string &text, const std::string &place) const {
        Ids ids = bos_;
        append(ids, tokens_.encode(text, false));
        append(ids, end_);
        if (ids.size() < 2 || text.empty()) refuse_row(place, "its text is empty");
        std::vector<Example> found;
        for (size_t start = 0; start + 1 < ids.size(); start += length_) {
            const size_t end = std::min(ids.size(), start + length_ + 1);
            found.push_back({{ids.begin() + start, ids.begin() + end - 1},
                             {ids.begin() + start + 1, ids.begin() + end}});
        }
        return found;
    }

    std::vector<std::vector<Segment>> segments_of(const std::vector<Message> &messages,
                                                  const std::string &place) const {
        std::vector<size_t> answers;
        for (size_t i = 0; i < messages.size(); i++) {
            if (messages[i].role != ASSISTANT) continue;
            if (messages[i].content.find_first_not_of(" \t\r\n") == std::string::npos)
                refuse_row(place, "an answer is empty");
            answers.push_back(i);
        }
        if (answers.empty()) refuse_row(place, "it has no answer of the assistant's");
        if (!template_.exists()) return {plain_segments(messages)};
        return rendered_segments(messages, answers, place);
    }

    std::vector<std::vector<Segment>> rendered_segments(const std::vector<Message> &messages,
                                                        const std::vector<size_t> &answers,
                                                        const std::string &place) const {
        const std::vector<Part> full = render(messages, messages.size(), false, place);
        const std::string all = joined(full);
        size_t at = 0;
        std::vector<Segment> together;
        std::vector<std::vector<Segment>> apart;
        for (const size_t i : answers) {
            const std::vector<Part> prompt = render(messages, i, true, place);
            const std::vector<Part> upto = stripped(render(messages, i + 1, false, place));
            const std::string text = joined(upto);
            const size_t start = size_of(prompt), end = text.size();
            if (!starts_with(text, joined(prompt)) || end == start)
                refuse_row(place, "the chat template leaves nothing of the answer");
            const Segment answer{cut(upto, start, end), true};
            if (starts_with(all, text) && start >= at) {
                together.push_back({cut(full, at, start), false});
                together.push_back(answer);
                at = end;
            } else {
                apart.push_back({{prompt, false}, answer});
            }
        }
        if (!together.empty()) apart.insert(apart.begin(), together);
        return apart;
    }

    Example example(const std::vector<Segment> &segments, const std::string &place) const {
        Ids ids;
        std::vector<bool> learnt;
        for (const Segment &segment : segments) {
            append(ids, tokens_.encode(segment.parts));
            learnt.resize(ids.size(), segment.learnt);
        }
        if (!bos_.empty() && std::find(ids.begin(), ids.end(), bos_[0]) == ids.end()) {
            ids.insert(ids.begin(), bos_[0]);
            learnt.insert(learnt.begin(), false);
        }
        while (!bos_.empty() && ids.size() > 1 && ids[0] == bos_[0] && ids[1] == bos_[0]) {
            ids.erase(ids.begin());
            learnt.erase(learnt.begin());
        }
        if (!template_.exists()) {
            append(ids, end_);
            learnt.resize(ids.size(), true);
        }
        if (ids.size() > length_)
            throw Failure(place + " has " + std::to_string(ids.size()) + " tokens, more than the " +
                              std::to_string(length_) + " that are learnt at once",
                          "shorten it, or give a larger sequence_length");
        Example found{ids, {}};
        for (size_t i = 1; i <= ids.size(); i++)
            found.labels.push_back(i < ids.size() && learnt[i] ? ids[i] : IGNORED);
        if (!found.answers()) refuse_row(place, "nothing of it is left to learn");
        return found;
    }

    std::vector<Part> render(const std::vector<Message> &messages, size_t count, bool start,
                             const std::string &place) const {
        try {
            return template_.render({messages.begin(), messages.begin() + count}, start);
        } catch (const std::exception &error) {
            refuse_row(place, shorten(error.what(), 150));
        }
    }

    static void append(Ids &to, const Ids &more) { to.insert(to.end(), more.begin(), more.end()); }

    const Template template_;
    const Tokens tokens_;
    const size_t length_;
    Ids bos_, end_;
};

struct FreeModel {
    void operator()(llama_model *model) const { llama_model_free(model); }
};

std::unique_ptr<llama_model, FreeModel> vocabulary_of(const std::string &path) {
    llama_model_params params = llama_model_default_params();
    params.vocab_only = true;
    std::unique_ptr<llama_model, FreeModel> model(llama_model_load_from_file(path.c_str(), params));
    if (!model) throw Failure("the model's vocabulary cannot be read" + first_error());
    return model;
}

}  // namespace

size_t Example::answers() const {
    return labels.size() - std::count(labels.begin(), labels.end(), IGNORED);
}

size_t Examples::longest() const {
    size_t found = 0;
    for (const Example &example : examples) found = std::max(found, example.ids.size());
    return found;
}

Examples read_examples(const std::string &model, const Fields &request, const Options &options,
                       int64_t vocab) {
    const auto vocabulary = vocabulary_of(model);
    const Writer writer(vocabulary.get(), options.sequence_length);
    Examples found;
    size_t skipped = 0;
    const auto take = [&](const std::string &place, const ReadRow &read) {
        try {
            for (Example &example : writer.examples(read(), place))
                found.examples.push_back(std::move(example));
        } catch (const Failure &error) {
            if (!options.skip_bad_rows) throw;
            if (skipped++ < SHOWN) found.skipped.push_back(error.what());
        }
    };
    if (const auto data = request.optional_file("data"))
        for_rows_of_file(*data, take);
    else
        for_rows(request.array("examples"), take);
    if (skipped > SHOWN)
        found.skipped.push_back("and " + std::to_string(skipped - SHOWN) + " more rows");
    if (found.examples.empty())
        throw Failure(skipped ? "there is nothing to learn: all rows are skipped"
                              : "there is nothing to learn: there are no rows",
                      "add a note: a question and its answer");
    for (const Example &example : found.examples)
        for (const int32_t id : example.ids)
            if (id < 0 || id >= vocab) throw Failure("the vocabulary and the model do not fit");
    return found;
}

std::vector<Example> read_replay(const std::string &path, int64_t vocab) {
    const auto refuse = [] [[noreturn]] () {
        throw Failure("the file of the model's own chats cannot be used", "write it again");
    };
    std::ifstream file(path, std::ios::binary);
    json found;
    try {
        found = json::parse(file);
    } catch (const json::exception &) {
        refuse();
    }
    if (!found.is_object() || found.value("version", json()) != 1 || !found.contains("texts") ||
        !found["texts"].is_array() || found["texts"].size() > MAX_REPLAY)
        refuse();
    std::vector<Example> examples;
    for (const json &text : found["texts"]) {
        if (!text.is_array() || text.size() < 2 || text.size() > MAX_REPLAY_TOKENS) refuse();
        for (const json &id : text)
            if (!id.is_number_integer() || id < 0 || id >= vocab) refuse();
        const auto ids = text.get<std::vector<int32_t>>();
        examples.push_back({{ids.begin(), ids.end() - 1}, {ids.begin() + 1, ids.end()}});
    }
    return examples;
}

}  // namespace worker::tune
