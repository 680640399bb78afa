#include "tensors.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstring>

#include "../shared/fields.h"

namespace worker::tune {

File::File(const std::string &path, std::string what) : what(std::move(what)) {
    descriptor_ = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat found {};
    if (descriptor_ < 0 || fstat(descriptor_, &found) != 0 || !S_ISREG(found.st_mode)) {
        if (descriptor_ >= 0) close(descriptor_);
        throw Failure(this->what + " cannot be read", "choose another file");
    }
    size_ = found.st_size;
}

File::~File() { close(descriptor_); }

void File::read(void *out, size_t size, uint64_t offset) const {
    auto *to = static_cast<char *>(out);
    while (size) {
        const ssize_t count = pread(descriptor_, to, size, offset);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) throw Failure(what + " ended early, or cannot be read", "get it again");
        to += count, size -= count, offset += count;
    }
}

WeightFile WeightFile::open(const std::string &path, const std::string &what) {
    WeightFile found;
    found.file = std::make_unique<File>(path, what);
    found.header = std::make_unique<GgufFile>(path, what);
    found.data_offset = found.header->data_offset();
    for (const auto &[name, tensor] : found.header->tensors()) {
        const auto &shape = tensor.shape;
        if (shape.size() > 2)
            throw Failure(what + " has a tensor with more than two dimensions",
                          "models of this kind cannot be trained here");
        found.tensors[name] = {tensor.type, shape[0], shape.size() > 1 ? shape[1] : 1,
                               tensor.offset};
    }
    return found;
}

double number_of(const GgufFile &header, const std::string &key, double otherwise) {
    if (!header.has(key)) return otherwise;
    double found = header.number(key).value_or(NAN);
    if (const std::vector<double> listed = header.numbers(key); !listed.empty()) {
        found = listed[0];
        for (const double other : listed)
            if (other != found)
                throw Failure(header.what() + " has blocks that differ in " + shorten(key, 60),
                              "only models whose blocks are alike can be trained here");
    }
    if (!std::isfinite(found))
        throw Failure(header.what() + " has no number as " + shorten(key, 60), "convert it again");
    return found;
}

std::vector<float> WeightFile::values(const Stored &tensor) const {
    std::vector<float> found(tensor.columns * tensor.rows);
    std::vector<uint8_t> scratch;
    decode(*file, tensor, 0, tensor.rows, 0, tensor.columns, found.data(), tensor.columns, scratch);
    return found;
}

uint64_t WeightFile::fingerprint() const {
    constexpr size_t SAMPLE = 4096, SAMPLES = 256;
    const uint64_t size = file->size(), rest = size - std::min(size, data_offset);
    uint64_t hash = hash_of(&size, sizeof(size));
    std::vector<uint8_t> part;
    const auto add = [&](uint64_t offset, uint64_t count) {
        part.resize(std::min<uint64_t>(count, size - std::min(size, offset)));
        file->read(part.data(), part.size(), offset);
        hash = hash_of(part.data(), part.size(), hash);
    };
    for (uint64_t at = 0; at < std::min(size, data_offset); at += 1 << 16)
        add(at, std::min<uint64_t>(1 << 16, data_offset - at));
    for (size_t i = 0; i < SAMPLES; i++) add(data_offset + rest / SAMPLES * i, SAMPLE);
    return hash;
}

void decode(const File &file, const Stored &tensor, int64_t row, int64_t count, int64_t column,
            int64_t width, float *out, int64_t stride, std::vector<uint8_t> &scratch) {
    const size_t full = tensor.row_bytes(), part = ggml_row_size(tensor.type, width);
    const size_t skip = ggml_row_size(tensor.type, column);
    scratch.resize(count * full);  // whole rows in one call: it costs more than their bytes
    file.read(scratch.data(), count * full, tensor.offset + row * full);
    const ggml_to_float_t to_float = ggml_get_type_traits(tensor.type)->to_float;
    for (int64_t i = 0; i < count; i++) {
        const uint8_t *from = scratch.data() + i * full + skip;
        if (tensor.type == GGML_TYPE_F32)
            std::memcpy(out + i * stride, from, part);
        else
            to_float(from, out + i * stride, width);
    }
}

uint64_t hash_of(const void *data, size_t size, uint64_t seed) {
    const auto *bytes = static_cast<const uint8_t *>(data);
    for (size_t i = 0; i < size; i++) seed = (seed ^ bytes[i]) * 0x100000001b3ULL;
    return seed;
}

}  // namespace worker::tune
