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

bool Metadata::has(const std::string &key) const {
    return gguf_find_key(header_.get(), key.c_str()) >= 0;
}

std::string Metadata::text(const std::string &key, const std::string &otherwise) const {
    const int64_t id = gguf_find_key(header_.get(), key.c_str());
    if (id < 0 || gguf_get_kv_type(header_.get(), id) != GGUF_TYPE_STRING) return otherwise;
    return gguf_get_val_str(header_.get(), id);
}

namespace {

double element(gguf_type type, const void *data, size_t i) {
    switch (type) {
        case GGUF_TYPE_UINT8: return static_cast<const uint8_t *>(data)[i];
        case GGUF_TYPE_INT8: return static_cast<const int8_t *>(data)[i];
        case GGUF_TYPE_UINT16: return static_cast<const uint16_t *>(data)[i];
        case GGUF_TYPE_INT16: return static_cast<const int16_t *>(data)[i];
        case GGUF_TYPE_UINT32: return static_cast<const uint32_t *>(data)[i];
        case GGUF_TYPE_INT32: return static_cast<const int32_t *>(data)[i];
        case GGUF_TYPE_FLOAT32: return static_cast<const float *>(data)[i];
        case GGUF_TYPE_UINT64: return static_cast<double>(static_cast<const uint64_t *>(data)[i]);
        case GGUF_TYPE_INT64: return static_cast<double>(static_cast<const int64_t *>(data)[i]);
        case GGUF_TYPE_FLOAT64: return static_cast<const double *>(data)[i];
        case GGUF_TYPE_BOOL: return static_cast<const int8_t *>(data)[i] != 0;
        default: return NAN;
    }
}

}  // namespace

double Metadata::number(const std::string &key, double otherwise) const {
    const gguf_context *header = header_.get();
    const int64_t id = gguf_find_key(header, key.c_str());
    if (id < 0) return otherwise;
    double found = NAN;
    bool alike = true;
    if (gguf_get_kv_type(header, id) == GGUF_TYPE_ARRAY) {
        const gguf_type type = gguf_get_arr_type(header, id);
        const size_t count = gguf_get_arr_n(header, id);
        if (type != GGUF_TYPE_STRING && count) {
            const void *data = gguf_get_arr_data(header, id);
            found = element(type, data, 0);
            for (size_t i = 1; i < count; i++) alike &= element(type, data, i) == found;
        }
    } else if (gguf_get_kv_type(header, id) != GGUF_TYPE_STRING) {
        found = element(gguf_get_kv_type(header, id), gguf_get_val_data(header, id), 0);
    }
    if (!alike) throw Failure("the model's blocks differ in " + shorten(key, 60),
                              "only models whose blocks are alike can be trained here");
    if (!std::isfinite(found)) throw Failure("the model's " + shorten(key, 60) + " is no number",
                                             "convert it again");
    return found;
}

size_t Metadata::entries(const std::string &key) const {
    const int64_t id = gguf_find_key(header_.get(), key.c_str());
    if (id < 0 || gguf_get_kv_type(header_.get(), id) != GGUF_TYPE_ARRAY) return 0;
    return gguf_get_arr_n(header_.get(), id);
}

GgufFile GgufFile::open(const std::string &path, const std::string &what) {
    GgufFile found;
    found.file = std::make_unique<File>(path, what);
    ggml_context *shapes = nullptr;
    gguf_context *header = gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, &shapes});
    if (!header) throw Failure(what + " is no GGUF file, or a damaged one", "get it again");
    found.metadata = std::make_unique<Metadata>(header);
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> freed(shapes, ggml_free);
    found.data_offset = gguf_get_data_offset(header);
    for (int64_t i = 0; i < gguf_get_n_tensors(header); i++) {
        const std::string name = gguf_get_tensor_name(header, i);
        const ggml_tensor *shape = ggml_get_tensor(shapes, name.c_str());
        if (!shape || shape->ne[2] != 1 || shape->ne[3] != 1)
            throw Failure(what + " has a tensor with more than two dimensions",
                          "models of this kind cannot be trained here");
        Stored tensor{shape->type, shape->ne[0], shape->ne[1],
                      found.data_offset + gguf_get_tensor_offset(header, i)};
        const uint64_t size = tensor.row_bytes() * tensor.rows;
        if (tensor.offset > found.file->size() || size > found.file->size() - tensor.offset)
            throw Failure(what + " is incomplete", "get it again");
        found.tensors[name] = tensor;
    }
    return found;
}

std::vector<float> GgufFile::values(const Stored &tensor) const {
    std::vector<float> found(tensor.columns * tensor.rows);
    std::vector<uint8_t> scratch;
    decode(*file, tensor, 0, tensor.rows, 0, tensor.columns, found.data(), tensor.columns, scratch);
    return found;
}

uint64_t GgufFile::fingerprint() const {
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
