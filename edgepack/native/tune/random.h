// Random numbers that are the same on every machine: SplitMix64 (Steele, Lea and Flood, 2014).

#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace worker::tune {

class Random {
  public:
    explicit Random(uint64_t seed) : state_(seed) {}
    // A seed of its own for every text: FNV-1a of the text, continued from the seed.
    Random(int64_t seed, const std::string &text);

    uint64_t next();
    double uniform();  // in [0, 1), in steps of 2⁻⁵³

  private:
    uint64_t state_;
};

// 0 … count − 1 in a random order (Fisher and Yates).
std::vector<size_t> shuffled(size_t count, Random random);

// The examples of a step, out of `count`; every epoch has another order.
std::vector<size_t> order(size_t count, size_t batch, int64_t seed, size_t step,
                          const std::string &what);

}  // namespace worker::tune
