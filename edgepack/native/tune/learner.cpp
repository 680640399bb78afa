#include "learner.h"

#include <algorithm>
#include <cstring>

namespace worker::tune {

std::vector<int64_t> places(const Example &example) {
    std::vector<int64_t> found;
    for (size_t t = 0; t < example.labels.size(); t++)
        if (example.labels[t] != IGNORED) found.push_back(static_cast<int64_t>(t));
    return found;
}

namespace {

// Tokens behind the last one that is learnt have no influence.
int64_t length_of(const Lesson &lesson) { return places(*lesson.example).back() + 1; }

}  // namespace

Learner::Learner(Engine &engine, const Model &model, Parameters &parameters, const Layout &layout,
                 std::string place, std::function<bool()> stopped)
    : engine_(engine), model_(model), parameters_(parameters), layout_(layout),
      place_(std::move(place)), stopped_(std::move(stopped)), block_(engine, model),
      head_(engine, model, head_pairs(model, parameters.factors())) {}

Loss Learner::learn(std::vector<Lesson> lessons) {
    for (const Lesson &lesson : lessons)
        if (lesson.teacher >= 0 && !teachers_.count(lesson.teacher) && !stopped_()) teach(lesson);
    Loss loss;
    for (const Batch &batch : batches(std::move(lessons))) {
        if (stopped_()) break;
        const Loss own = learn(batch);
        loss.answers += own.answers;
        loss.replay += own.replay;
    }
    return loss;
}

// The longest ones first, as many as there are positions for, so that few are left over.
std::vector<Learner::Batch> Learner::batches(std::vector<Lesson> lessons) const {
    const auto longer = [](const Lesson &a, const Lesson &b) { return length_of(a) > length_of(b); };
    std::stable_sort(lessons.begin(), lessons.end(), longer);
    std::vector<std::vector<Lesson>> groups;
    std::vector<int64_t> sizes;
    for (const Lesson &lesson : lessons) {
        const int64_t length = length_of(lesson);
        size_t i = 0;
        while (i < groups.size() && sizes[i] + length > layout_.positions) i++;
        if (i == groups.size()) groups.emplace_back(), sizes.push_back(0);
        groups[i].push_back(lesson);
        sizes[i] += length;
    }
    std::vector<Batch> found;
    for (auto &group : groups) {
        std::vector<int64_t> lengths;
        for (const Lesson &lesson : group) lengths.push_back(length_of(lesson));
        found.push_back({std::move(group), Shape(lengths)});
    }
    return found;
}

Loss Learner::learn(const Batch &batch) {
    const int64_t lowest = parameters_.lowest(), blocks = model_.facts.blocks;
    std::vector<float> x = embedded(batch);
    Arrays inputs(std::vector<size_t>(blocks - lowest, x.size()),
                  layout_.inputs_on_disk ? place_ : "");
    for (int64_t i = 0; i < blocks; i++) {
        if (stopped_()) return {};
        if (i >= lowest) inputs.write(i - lowest, x.data());
        block_.forward(i, parameters_.pairs(i, true), batch.shape, x.data());
    }
    const Loss loss = at_the_end(batch, x);  // x is the gradient now
    std::vector<float> input(x.size());
    for (int64_t i = blocks - 1; i >= lowest; i--) {
        if (stopped_()) return {};
        inputs.read(i - lowest, input.data());
        const LayerPairs pairs = parameters_.pairs(i, true);
        parameters_.add(i, block_.backward(i, pairs, batch.shape, input.data(), x.data(),
                                           i == lowest));
    }
    return loss;
}

std::vector<float> Learner::embedded(const Batch &batch) const {
    const int64_t hidden = model_.facts.hidden;
    std::vector<float> x(batch.shape.size() * hidden);
    std::vector<uint8_t> scratch;
    for (size_t i = 0; i < batch.lessons.size(); i++) {
        const Span &span = batch.shape.spans[i];
        for (int64_t t = 0; t < span.length; t++)
            decode(*model_.gguf.file, model_.embedding, batch.lessons[i].example->ids[t], 1, 0,
                   hidden, &x[(span.start + t) * hidden], hidden, scratch);
    }
    return x;
}

// The losses, and in place of the last hidden states the gradient there.
Loss Learner::at_the_end(const Batch &batch, std::vector<float> &x) {
    const int64_t hidden = model_.facts.hidden;
    std::vector<float> own, weights;
    std::vector<int64_t> from;
    for (size_t i = 0; i < batch.lessons.size(); i++) {
        for (const int64_t t : places(*batch.lessons[i].example)) {
            from.push_back(batch.shape.spans[i].start + t);
            weights.push_back(static_cast<float>(batch.lessons[i].share));
        }
    }
    for (const int64_t t : from) own.insert(own.end(), &x[t * hidden], &x[t * hidden] + hidden);
    const std::vector<double> losses = head_.loss(own, targets(batch), weights);
    std::fill(x.begin(), x.end(), 0.0f);
    for (size_t t = 0; t < from.size(); t++)
        std::memcpy(&x[from[t] * hidden], &own[t * hidden], hidden * sizeof(float));
    Loss loss;
    size_t at = 0;
    for (const Lesson &lesson : batch.lessons) {
        double sum = 0;
        for (size_t i = 0; i < lesson.example->answers(); i++) sum += losses[at++];
        (lesson.teacher < 0 ? loss.answers : loss.replay) += lesson.share * sum;
    }
    return loss;
}

Targets Learner::targets(const Batch &batch) {
    Targets found;
    for (const Lesson &lesson : batch.lessons) {
        Targets own;
        if (lesson.teacher < 0) {
            std::vector<int32_t> wanted;
            for (const int64_t t : places(*lesson.example))
                wanted.push_back(lesson.example->labels[t]);
            own = head_.labels(wanted);
        } else {
            const Teacher &teacher = teachers_.at(lesson.teacher);
            own = {teacher.rows->read(0), teacher.constants};
        }
        found.rows.insert(found.rows.end(), own.rows.begin(), own.rows.end());
        found.constants.insert(found.constants.end(), own.constants.begin(), own.constants.end());
    }
    return found;
}

// What the untuned model predicts for a general text.
void Learner::teach(const Lesson &lesson) {
    const Batch batch{{lesson}, Shape({length_of(lesson)})};
    std::vector<float> x = embedded(batch);
    for (int64_t i = 0; i < model_.facts.blocks; i++) {
        if (stopped_()) return;
        block_.forward(i, parameters_.pairs(i, false), batch.shape, x.data());
    }
    const int64_t hidden = model_.facts.hidden;
    std::vector<float> own;
    for (const int64_t t : places(*lesson.example))
        own.insert(own.end(), &x[t * hidden], &x[t * hidden] + hidden);
    Targets found = head_.imitated(own);
    Teacher teacher;
    teacher.rows = std::make_unique<Arrays>(std::vector<size_t>{found.rows.size()},
                                            layout_.parameters_on_disk ? place_ : "");
    teacher.rows->write(0, found.rows.data());
    teacher.constants = std::move(found.constants);
    teachers_[lesson.teacher] = std::move(teacher);
}

}  // namespace worker::tune
