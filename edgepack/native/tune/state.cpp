#include "state.h"

#include <unistd.h>

#include <array>
#include <cstring>
#include <optional>

#include "files.h"
#include "tensors.h"

namespace worker::tune {
namespace {

constexpr uint64_t MAGIC = 0x31454e5554504445ULL;  // "EDPTUNE1"

// The file: these numbers, the losses, masters, first and second moments, and a hash of it all.
struct Header {
    uint64_t magic, key, numbers, steps, tokens;
    double seconds;
    int64_t positions;
};

std::array<Arrays *, 3> groups(const Parameters &parameters) {
    return {parameters.masters.get(), parameters.first.get(), parameters.second.get()};
}

// Reads a file from its start, and hashes what it reads.
class Hashed {
  public:
    explicit Hashed(const File &file) : file_(file) {}

    void read(void *out, size_t size) {
        file_.read(out, size, at_);
        at_ += size;
        hash_ = hash_of(out, size, hash_);
    }
    uint64_t at() const { return at_; }
    uint64_t hash() const { return hash_; }

  private:
    const File &file_;
    uint64_t at_ = 0, hash_ = hash_of("", 0);
};

// A pass over the file; what it reads goes to `take` (group, array, values).
template <typename Take>
bool scan(const File &file, const Header &header, std::vector<double> &losses,
          const Parameters &parameters, const Take &take) {
    Hashed in(file);
    Header again;
    in.read(&again, sizeof(again));
    losses.resize(header.steps);
    in.read(losses.data(), losses.size() * sizeof(double));
    const auto all = groups(parameters);
    std::vector<float> values;
    for (size_t group = 0; group < all.size(); group++) {
        for (size_t i = 0; i < all[group]->count(); i++) {
            values.resize(all[group]->size(i));
            in.read(values.data(), values.size() * sizeof(float));
            take(*all[group], i, values);
        }
    }
    uint64_t wanted = 0;
    const uint64_t found = in.hash();
    file.read(&wanted, sizeof(wanted), in.at());
    return wanted == found;
}

}  // namespace

void save_state(const std::string &path, uint64_t key, const Curve &curve,
                const Parameters &parameters) {
    NewFile file(path, "the training's state");
    uint64_t hash = hash_of("", 0);
    const auto write = [&](const void *data, size_t size) {
        hash = hash_of(data, size, hash);
        file.write(data, size);
    };
    const Header header{
        MAGIC,        key,           parameters.count(), curve.losses.size(),
        curve.tokens, curve.seconds, curve.positions,
    };
    write(&header, sizeof(header));
    write(curve.losses.data(), curve.losses.size() * sizeof(double));
    for (const Arrays *arrays : groups(parameters))
        for (size_t i = 0; i < arrays->count(); i++) {
            const std::vector<float> values = arrays->read(i);
            write(values.data(), values.size() * sizeof(float));
        }
    file.write(&hash, sizeof(hash));
    file.commit();
}

Found load_state(const std::string &path, uint64_t key, Curve &curve, Parameters &parameters) {
    if (access(path.c_str(), F_OK) != 0) return Found::nothing;
    const File file(path, "the training's state");
    Header header{};
    if (file.size() < sizeof(header)) return Found::damaged;
    file.read(&header, sizeof(header), 0);
    if (header.magic != MAGIC) return Found::damaged;
    const uint64_t numbers = 3 * parameters.count() * sizeof(float);
    const bool fits = header.key == key && header.numbers == parameters.count();
    if (!fits)
        throw Failure("the state of another training is in the way",
                      "finish that one, or remove its state");
    if (header.steps > 1 << 20 ||
        file.size() != sizeof(header) + header.steps * sizeof(double) + numbers + sizeof(uint64_t))
        return Found::damaged;
    std::vector<double> losses;
    const auto pass_over = [](Arrays &, size_t, const std::vector<float> &) {};
    if (!scan(file, header, losses, parameters, pass_over)) return Found::damaged;
    scan(file, header, losses, parameters, [](Arrays &to, size_t i, const std::vector<float> &x) {
        to.write(i, x.data());
    });
    curve = {losses, header.tokens, header.seconds, header.positions};
    return Found::state;
}

}  // namespace worker::tune
