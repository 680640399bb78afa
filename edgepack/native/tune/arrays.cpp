#include "arrays.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

#include "../shared/fields.h"

namespace worker::tune {
namespace {

int nameless(const std::string &place) {
    const std::string path = place + ".scratch";
    const int file = open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (file < 0) throw Failure("the folder of the training's state cannot be written to");
    unlink(path.c_str());
    return file;
}

template <typename Call>
void transfer(const Call &call, char *data, size_t size, off_t offset) {
    while (size) {
        const ssize_t count = call(data, size, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) throw Failure("the disk is full, or cannot be used", "free some space");
        data += count, size -= count, offset += count;
    }
}

}  // namespace

Arrays::Arrays(std::vector<size_t> sizes, const std::string &place) : sizes_(std::move(sizes)) {
    size_t start = 0;
    for (const size_t size : sizes_) {
        starts_.push_back(start);
        start += size * sizeof(float);
        if (place.empty()) kept_.emplace_back(size);
    }
    if (place.empty()) return;
    file_ = nameless(place);
    if (ftruncate(file_, start) != 0) throw Failure("the disk is full", "free some space");
}

Arrays::~Arrays() {
    if (file_ >= 0) close(file_);
}

void Arrays::read(size_t index, float *out) const {
    if (file_ < 0) {
        std::copy(kept_[index].begin(), kept_[index].end(), out);
        return;
    }
    const auto call = [&](void *to, size_t size, off_t at) { return pread(file_, to, size, at); };
    transfer(call, reinterpret_cast<char *>(out), sizes_[index] * sizeof(float), starts_[index]);
}

std::vector<float> Arrays::read(size_t index) const {
    std::vector<float> found(sizes_[index]);
    read(index, found.data());
    return found;
}

void Arrays::write(size_t index, const float *values) {
    if (file_ < 0) {
        std::copy(values, values + sizes_[index], kept_[index].begin());
        return;
    }
    const auto call = [&](void *of, size_t size, off_t at) { return pwrite(file_, of, size, at); };
    auto *data = reinterpret_cast<char *>(const_cast<float *>(values));
    transfer(call, data, sizes_[index] * sizeof(float), starts_[index]);
}

void Arrays::clear() {
    for (auto &values : kept_) std::fill(values.begin(), values.end(), 0.0f);
    if (file_ < 0) return;
    std::vector<float> zeros;
    for (size_t i = 0; i < sizes_.size(); i++) {
        zeros.assign(sizes_[i], 0.0f);
        write(i, zeros.data());
    }
}

}  // namespace worker::tune
