#include "training.h"

#include <unistd.h>

#include <cmath>

#include "../shared/threads.h"
#include "adamw.h"
#include "adapter.h"
#include "random.h"

namespace worker::tune {
namespace {

constexpr double SAVE_EVERY = 15;  // seconds; a killed training repeats at most so much
constexpr int64_t MAX_THREADS = 256;

int threads_of(const Fields &fields) {
    const int64_t asked = fields.integer("threads", 0, 0, MAX_THREADS);
    return asked ? static_cast<int>(asked) : default_threads();
}

Factors factors_of(const Fields &fields, const Model &model) {
    const auto path = fields.optional_file("factors");
    return path ? Factors(*path, model) : Factors();
}

std::map<std::string, std::string> marks_of(const json &marks) {
    std::map<std::string, std::string> found;
    for (const auto &[key, value] : marks.items()) {
        if (!value.is_string()) throw Failure("marks." + shorten(key, 60) + " is no text");
        found[key] = value;
    }
    return found;
}

}  // namespace

Training::Training(const Request &request)
    : request_(request), fields_(request.fields), options_(Options::read(fields_)),
      model_(Model::open(fields_.file("model"))), factors_(factors_of(fields_, model_)),
      engine_(threads_of(fields_)) {
    learning(model_, factors_, options_);  // refuses names that there are not
    marks_of(fields_.object("marks"));
    if (request.action != "plan") fields_.file("out");
    if (request.action == "train") state_ = fields_.file("state");
    if (const auto state = fields_.optional_file("state")) state_ = *state;
    const int64_t vocab = model_.facts.vocab;
    examples_ = read_examples(fields_.file("model"), fields_, options_, vocab);
    return_freed_memory();
    const auto replay = fields_.optional_file("replay");
    if (replay && options_.replay > 0) replay_ = read_replay(*replay, vocab);
    int64_t longest = examples_.longest(), kept = 0;
    for (const Example &text : replay_) {
        longest = std::max<int64_t>(longest, text.ids.size());
        kept += text.ids.size();
    }
    if (model_.facts.window && model_.facts.window < longest)
        throw Failure("the model sees " + std::to_string(model_.facts.window) +
                          " tokens at once, and an example has " + std::to_string(longest),
                      "shorten it, or train it with edgepack finetune");
    layout_ = choose_layout(engine_, model_, factors_, options_, longest, kept);
}

Last Training::plan() {
    if (!state_.empty() && access(state_.c_str(), F_OK) == 0) begin();  // to know where it stands
    return {"planned", planned()};
}

void Training::begin() {
    const std::string place = state_.empty() ? fields_.file("out") : state_;
    parameters_ = std::make_unique<Parameters>(model_, factors_, options_,
                                               layout_.parameters_on_disk ? place : "");
    curve_.positions = layout_.positions;
    if (!state_.empty()) load_state(state_, key(), curve_, *parameters_);
    layout_.positions = curve_.positions;  // as it was begun, so that it goes on to the same bytes
    learner_ = std::make_unique<Learner>(engine_, model_, *parameters_, layout_, place,
                                         [this] { return request_.cancelled(); });
}

json Training::planned() const {
    uint64_t answers = 0, tokens = 0;
    for (const Example &example : examples_.examples) {
        answers += example.answers();
        tokens += example.ids.size();
    }
    uint64_t parameters = 0;
    for (const Learning &w : learning(model_, factors_, options_))
        parameters += w.rank * (model_.facts.in(w.role) + model_.facts.out(w.role));
    return {{"examples", examples_.examples.size()},
            {"skipped", examples_.skipped},
            {"answer_tokens", answers},
            {"tokens", tokens},
            {"steps", steps()},
            {"parameters", parameters},
            {"memory", layout_.peak},
            {"resumed_at", curve_.losses.size()}};
}

Last Training::train() {
    begin();
    request_.event("planned", planned());
    while (curve_.losses.size() < steps()) {
        if (request_.cancelled()) {
            save_state(state_, key(), curve_, *parameters_);
            return end("cancelled");
        }
        make_step();
    }
    return finish();
}

void Training::make_step() {
    const Clock clock;
    const size_t number = curve_.losses.size();
    const Loss loss = make_gradients();
    if (request_.cancelled()) return;  // the step is made again when the training goes on
    const double length = gradient_norm(*parameters_);
    if (!std::isfinite(length) || !std::isfinite(loss.answers))
        throw Failure("the gradient of step " + std::to_string(number + 1) + " is not finite",
                      "give a smaller learning_rate");
    adamw(*parameters_, options_, number, steps(), length);
    curve_.losses.push_back(loss.answers);
    curve_.tokens += learnt_tokens(lessons(number));
    curve_.seconds += clock.seconds();
    const double left = curve_.seconds / (number + 1) * (steps() - number - 1);
    request_.event("step",
                   {{"step", number + 1},
                    {"steps", steps()},
                    {"loss", loss.answers},
                    {"replay_loss", keeps_general() ? json(loss.replay) : json(nullptr)},
                    {"gradient_norm", length},
                    {"tokens_per_second", curve_.tokens_per_second()},
                    {"seconds_left", left},
                    {"memory", memory()}});
    if (saved_.seconds() > SAVE_EVERY || number + 1 == steps()) {
        save_state(state_, key(), curve_, *parameters_);
        saved_ = Clock();
        request_.event("saved", {{"step", number + 1}});
    }
}

Last Training::finish() {
    write_adapter(fields_.file("out"), model_, *parameters_, marks_of(fields_.object("marks")));
    unlink(state_.c_str());
    return end("steps");
}

Last Training::end(const char *reason) const {
    return {"ended",
            {{"reason", reason},
             {"steps", curve_.losses.size()},
             {"losses", curve_.losses},
             {"tokens_per_second", curve_.tokens_per_second()},
             {"seconds", curve_.seconds},
             {"parameters", parameters_->count()},
             {"memory", memory()}}};
}

Last Training::gradient() {
    begin();
    const Loss loss = make_gradients();
    if (request_.cancelled()) throw Failure("it was cancelled");
    write_gradients(fields_.file("out"), model_, *parameters_);
    return {"gradient",
            {{"loss", loss.answers},
             {"replay_loss", keeps_general() ? json(loss.replay) : json(nullptr)},
             {"gradient_norm", gradient_norm(*parameters_)}}};
}

Loss Training::make_gradients() {
    parameters_->gradients->clear();
    return learner_->learn(lessons(curve_.losses.size()));
}

// The mean loss over a step's answers, plus the mean KL to the untuned model over its general text.
std::vector<Lesson> Training::lessons(size_t step) const {
    std::vector<Lesson> found;
    double answers = 0;
    const size_t count = examples_.examples.size();
    for (const size_t i : order(count, batch(), options_.seed, step, "examples")) {
        found.push_back({&examples_.examples[i]});
        answers += examples_.examples[i].answers();
    }
    for (Lesson &lesson : found) lesson.share = 1 / answers;
    if (!keeps_general()) return found;
    const auto more = static_cast<size_t>(std::max(1.0, std::nearbyint(options_.replay * batch())));
    for (const size_t i : order(replay_.size(), more, options_.seed, step, "replay"))
        found.push_back(
            {&replay_[i], static_cast<int>(i), 1.0 / (more * replay_[i].answers())});
    return found;
}

uint64_t Training::learnt_tokens(const std::vector<Lesson> &lessons) const {
    uint64_t found = 0;
    for (const Lesson &lesson : lessons) found += lesson.example->ids.size();
    return found;
}

size_t Training::batch() const {
    return std::min<size_t>(options_.batch_size, examples_.examples.size());
}

size_t Training::steps() const {
    if (options_.steps) return *options_.steps;
    return (options_.epochs * examples_.examples.size() + batch() - 1) / batch();
}

// A number for all that the steps depend on.
uint64_t Training::key() const {
    const std::string options = options_.key();
    uint64_t hash = hash_of(options.data(), options.size());
    for (const uint64_t part : {model_.gguf.fingerprint(), factors_.fingerprint()})
        hash = hash_of(&part, sizeof(part), hash);
    for (const auto *examples : {&examples_.examples, &replay_})
        for (const Example &example : *examples)
            for (const auto *ids : {&example.ids, &example.labels}) {
                const size_t size = ids->size();
                hash = hash_of(&size, sizeof(size), hash);
                hash = hash_of(ids->data(), size * sizeof(int32_t), hash);
            }
    return hash;
}

}  // namespace worker::tune
