#include "rounding.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "../shared/fields.h"

namespace worker::tune {
namespace {

constexpr float LARGEST = 65504;  // of float16

// Types of 32 values with a scale, which comes first: x = scale · code.
struct Coded {
    ggml_type type;
    float low, high;
};
constexpr Coded CODED[] = {
    {GGML_TYPE_Q4_0, -8, 7}, {GGML_TYPE_Q5_0, -16, 15}, {GGML_TYPE_Q8_0, -128, 127}};

const Coded *coded(ggml_type type) {
    for (const Coded &known : CODED)
        if (known.type == type) return &known;
    return nullptr;
}

float largest(const float *x, int64_t count) {
    float found = 0;
    for (int64_t i = 0; i < count; i++) found = std::max(found, std::abs(x[i]));
    return found;
}

void round_block(const Coded &kind, const uint8_t *stored, float *x, int64_t count) {
    float before[32];
    ggml_get_type_traits(kind.type)->to_float(stored, before, count);
    ggml_fp16_t bits;
    std::memcpy(&bits, stored, sizeof(bits));
    const float peak = largest(before, count);
    const float growth = peak > 0 ? largest(x, count) / peak : 1;
    const float scale = half(ggml_fp16_to_fp32(bits) * growth);
    const float inverse = scale != 0 ? 1 / scale : 0;
    for (int64_t i = 0; i < count; i++)
        x[i] = scale * std::clamp(std::nearbyint(x[i] * inverse), kind.low, kind.high);
}

}  // namespace

float half(float x) {
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(std::clamp(x, -LARGEST, LARGEST)));
}

bool can_round(ggml_type type) {
    return type == GGML_TYPE_F16 || type == GGML_TYPE_F32 || coded(type);
}

std::vector<float> rounded(ggml_type type, const std::vector<uint8_t> &stored,
                           std::vector<float> x) {
    if (type == GGML_TYPE_F16)
        for (float &value : x) value = half(value);
    if (const Coded *kind = coded(type)) {
        const int64_t block = ggml_blck_size(type);
        for (size_t i = 0; i < x.size(); i += block)
            round_block(*kind, stored.data() + i / block * ggml_type_size(type), &x[i], block);
    }
    return x;
}

}  // namespace worker::tune
