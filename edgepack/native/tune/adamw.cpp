#include "adamw.h"

#include <algorithm>
#include <cmath>

namespace worker::tune {
namespace {

constexpr double FIRST = 0.9, SECOND = 0.999;
constexpr float EPSILON = 1e-8f;

}  // namespace

double gradient_norm(const Parameters &parameters) {
    double sum = 0;
    for (size_t i = 0; i < parameters.gradients->count(); i++)
        for (const float g : parameters.gradients->read(i)) sum += static_cast<double>(g) * g;
    return std::sqrt(sum);
}

double schedule(size_t step, size_t steps, double warm_up) {
    const auto warm = std::max<double>(1, std::nearbyint(warm_up * steps));
    if (step < warm) return (step + 1) / warm;
    return 0.5 * (1 + std::cos(M_PI * (step - warm) / std::max<double>(1, steps - warm)));
}

void adamw(Parameters &parameters, const Options &options, size_t number, size_t steps,
           double length) {
    const auto shrink = static_cast<float>(std::min(1.0, options.clip / std::max(length, 1e-30)));
    const double rate = schedule(number, steps, options.warmup_ratio) * options.learning_rate;
    const auto unbias = static_cast<float>(1 - std::pow(SECOND, number + 1));
    for (size_t i = 0; i < parameters.masters->count(); i++) {
        const double reach = rate * parameters.unit(i);
        const auto step = static_cast<float>(reach / (1 - std::pow(FIRST, number + 1)));
        const auto kept = static_cast<float>(1 - reach * options.weight_decay);
        std::vector<float> p = parameters.masters->read(i), m = parameters.first->read(i);
        std::vector<float> v = parameters.second->read(i);
        const std::vector<float> gradient = parameters.gradients->read(i);
        for (size_t j = 0; j < p.size(); j++) {
            const float g = gradient[j] * shrink;
            m[j] += static_cast<float>(1 - FIRST) * (g - m[j]);
            v[j] = static_cast<float>(SECOND) * v[j] + static_cast<float>(1 - SECOND) * g * g;
            p[j] = kept * p[j] - step * m[j] / (std::sqrt(v[j] / unbias) + EPSILON);
        }
        parameters.masters->write(i, p.data());
        parameters.first->write(i, m.data());
        parameters.second->write(i, v.data());
    }
}

}  // namespace worker::tune
