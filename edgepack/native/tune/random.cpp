#include "random.h"

#include <numeric>
#include <utility>

#include "tensors.h"

namespace worker::tune {

Random::Random(int64_t seed, const std::string &text)
    : state_(hash_of(text.data(), text.size(), hash_of(&seed, sizeof(seed)))) {}

uint64_t Random::next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15ULL;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

double Random::uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }

std::vector<size_t> shuffled(size_t count, Random random) {
    std::vector<size_t> found(count);
    std::iota(found.begin(), found.end(), 0);
    for (size_t i = count; i > 1; i--)
        std::swap(found[i - 1], found[static_cast<size_t>(random.uniform() * i)]);
    return found;
}

std::vector<size_t> order(size_t count, size_t batch, int64_t seed, size_t step,
                          const std::string &what) {
    std::vector<size_t> found, epoch;
    size_t number = SIZE_MAX;
    for (size_t place = step * batch; place < (step + 1) * batch; place++) {
        if (place / count != number) {
            number = place / count;
            epoch = shuffled(count, Random(seed, what + " " + std::to_string(number)));
        }
        found.push_back(epoch[place % count]);
    }
    return found;
}

}  // namespace worker::tune
