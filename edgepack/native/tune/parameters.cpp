#include "parameters.h"

#include <algorithm>
#include <cmath>

#include "random.h"
#include "rounding.h"

namespace worker::tune {
namespace {

// Root mean square of lora_A as PEFT begins it, for a width of 576: the size of a value that the
// learning rate is meant for.
constexpr double USUAL = 0.025;

double rms(const std::vector<float> &x) {
    double sum = 0;
    for (const float value : x) sum += static_cast<double>(value) * value;
    return std::max(std::sqrt(sum / x.size()), 1e-12);
}

// Rows behind those that are there, times `scale`.
void append(std::vector<float> &to, const std::vector<float> &rows, float scale = 1) {
    to.reserve(to.size() + rows.size());
    for (const float value : rows) to.push_back(scale * value);
}

void pad(Pairs &pairs, int64_t in, int64_t out) {
    pairs.rank = (pairs.rank + RANK_STEP - 1) / RANK_STEP * RANK_STEP;
    pairs.A.resize(pairs.rank * in);
    pairs.B.resize(pairs.rank * out);
}

void check_rounding(const Factor &factor) {
    for (const Stored *part : {&factor.A, &factor.B})
        if (!can_round(part->type))
            throw Failure(std::string("factors of the type ") + ggml_type_name(part->type) +
                              " cannot be trained here",
                          "use the mode stack");
}

}  // namespace

std::vector<Learning> learning(const Model &model, const Factors &factors, const Options &options) {
    std::vector<Learning> found;
    bool named = false;
    for (int64_t layer = 0; layer < model.facts.blocks; layer++) {
        for (int i = 0; i < ROLES; i++) {
            const std::string number = std::to_string(layer);
            if (!options.targets("model.layers." + number + "." + ROLE_NAMES[i].module)) continue;
            named = true;
            const Role role = static_cast<Role>(i);
            const std::string name = "blk." + number + "." + ROLE_NAMES[i].gguf + ".weight";
            const auto scale = static_cast<float>(options.lora_alpha / options.r);
            if (options.stack) {
                found.push_back({layer, role, options.r, scale, name});
            } else if (const Factor *factor = factors.find(layer, role)) {
                check_rounding(*factor);
                found.push_back({layer, role, factor->rank(), factor->scale, name});
            }
        }
    }
    if (!named)
        throw Failure("options.target_modules names no weight of the model's blocks",
                      "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj");
    if (found.empty())
        throw Failure("the model has no factors L·R to train there", "use the mode stack");
    return found;
}

Parameters::Parameters(const Model &model, const Factors &factors, const Options &options,
                       const std::string &place)
    : model_(model), factors_(factors), stack_(options.stack),
      weights_(learning(model, factors, options)) {
    places_.resize(model.facts.blocks);
    for (auto &roles : places_) roles.fill(-1);
    std::vector<size_t> sizes;
    for (size_t i = 0; i < weights_.size(); i++) {
        const Learning &w = weights_[i];
        places_[w.layer][w.role] = static_cast<int>(i);
        sizes.push_back(w.rank * model.facts.in(w.role));
        sizes.push_back(w.rank * model.facts.out(w.role));
    }
    for (auto *arrays : {&masters, &first, &second, &gradients})
        *arrays = std::make_unique<Arrays>(sizes, place);
    for (size_t i = 0; i < sizes.size(); i++) {
        const std::vector<float> values = started(i, options.seed);
        masters->write(i, values.data());
        if (!stack_) units_.push_back(rms(values) / USUAL);
    }
}

size_t Parameters::count() const {
    size_t found = 0;
    for (size_t i = 0; i < masters->count(); i++) found += masters->size(i);
    return found;
}

const Factor *Parameters::stored(const Learning &weight) const {
    return factors_.find(weight.layer, weight.role);
}

// As PEFT begins: A uniform in ±1/√in, B zero. Or L and R as they are.
std::vector<float> Parameters::started(size_t array, int64_t seed) const {
    const Learning &w = weights_[array / 2];
    const bool is_A = array % 2 == 0;
    if (!stack_) return is_A ? factors_.A(*stored(w)) : factors_.B(*stored(w));
    std::vector<float> values(masters->size(array));
    if (!is_A) return values;
    Random random(seed, w.name);
    const double bound = 1 / std::sqrt(static_cast<double>(model_.facts.in(w.role)));
    for (float &value : values) value = static_cast<float>((2 * random.uniform() - 1) * bound);
    return values;
}

std::vector<float> Parameters::rounded(size_t array) const {
    std::vector<float> x = masters->read(array);
    if (stack_) return tune::rounded(GGML_TYPE_F16, {}, std::move(x));
    const Factor &factor = *stored(weights_[array / 2]);
    if (array % 2 == 0)
        return tune::rounded(factor.A.type, factors_.bytes(factor.A), std::move(x));
    // lora_b has a row for each output: its blocks run along the rank
    const int64_t out = factor.B.rows, rank = factor.rank();
    x = tune::rounded(factor.B.type, factors_.bytes(factor.B), turned(x, rank, out));
    return turned(x, out, rank);
}

LayerPairs Parameters::pairs(int64_t layer, bool tuned) const {
    LayerPairs found;
    for (int i = 0; i < ROLES; i++) {
        const Role role = static_cast<Role>(i);
        Pairs &pairs = found[i];
        const int place = tuned ? places_[layer][i] : -1;
        if (place >= 0) {
            const Learning &w = weights_[place];
            pairs.rank = pairs.trained = w.rank;
            pairs.scale = w.scale;
            append(pairs.A, rounded(2 * place));
            append(pairs.B, rounded(2 * place + 1), w.scale);
        }
        const Factor *frozen = factors_.find(layer, role);
        if (frozen && (stack_ || place < 0)) {
            pairs.rank += frozen->rank();
            append(pairs.A, factors_.A(*frozen));
            append(pairs.B, factors_.B(*frozen), frozen->scale);
        }
        pad(pairs, model_.facts.in(role), model_.facts.out(role));
    }
    return found;
}

Pairs head_pairs(const Model &model, const Factors &factors) {
    Pairs found;
    if (const Factor *factor = factors.head()) {
        found.rank = factor->rank();
        append(found.A, factors.A(*factor));
        append(found.B, factors.B(*factor), factor->scale);
        pad(found, model.facts.hidden, model.facts.vocab);
    }
    return found;
}

Parameters::Difference Parameters::difference(size_t weight) const {
    const Learning &w = weights_[weight];
    Difference found{w.rank, {}, {}};
    append(found.A, rounded(2 * weight));
    append(found.B, rounded(2 * weight + 1), w.scale);
    if (stack_) return found;
    found.rank *= 2;  // L'·R' − L·R
    append(found.A, factors_.A(*stored(w)));
    append(found.B, factors_.B(*stored(w)), -w.scale);
    return found;
}

void Parameters::add(int64_t layer, const LayerGradients &found) {
    for (int i = 0; i < ROLES; i++) {
        const int place = places_[layer][i];
        if (place < 0) continue;
        for (const auto &[array, values] : {std::pair{2 * place, &found[i].A},
                                            std::pair{2 * place + 1, &found[i].B}}) {
            std::vector<float> sum = gradients->read(array);
            for (size_t j = 0; j < sum.size(); j++) sum[j] += (*values)[j];
            gradients->write(array, sum.data());
        }
    }
}

}  // namespace worker::tune
