// L and R of a packed model, as a GGUF adapter stores them: lora_b = L, lora_a = R.

#pragma once

#include <array>
#include <optional>
#include <string>
#include <vector>

#include "model.h"

namespace worker::tune {

struct Factor {
    Stored A, B;  // [rank, in], [out, rank]
    float scale = 1;
    int64_t rank() const { return A.rows; }
};

class Factors {
  public:
    // None.
    Factors() = default;
    // Factors that do not fit the model are refused.
    Factors(const std::string &path, const Model &model);

    const Factor *find(int64_t layer, Role role) const;
    const Factor *head() const { return head_ ? &*head_ : nullptr; }

    std::vector<float> A(const Factor &factor) const;  // [rank, in]
    std::vector<float> B(const Factor &factor) const;  // [rank, out]: columns of lora_b
    // A tensor as it is stored.
    std::vector<uint8_t> bytes(const Stored &tensor) const;

    uint64_t fingerprint() const { return gguf_.file ? gguf_.fingerprint() : 0; }
    bool any() const { return gguf_.file != nullptr; }

  private:
    WeightFile gguf_;
    std::vector<std::array<std::optional<Factor>, ROLES>> layers_;
    std::optional<Factor> head_;
};

// [n, m] → [m, n].
std::vector<float> turned(const std::vector<float> &x, int64_t rows, int64_t columns);

}  // namespace worker::tune
