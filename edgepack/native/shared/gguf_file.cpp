#include "gguf_file.h"

#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <utility>

#include "fields.h"

namespace worker {
namespace {

constexpr const char *COPY_AGAIN = "copy it again";

uint64_t file_bytes(const std::string &path, const std::string &what) {
    struct stat about {};
    if (stat(path.c_str(), &about) != 0) throw Failure(what + " is not there", COPY_AGAIN);
    if (!S_ISREG(about.st_mode)) throw Failure(what + " is no file");
    std::ifstream file(path, std::ios::binary);
    if (!file) throw Failure(what + " cannot be read");
    char magic[4] = "";
    file.read(magic, sizeof magic);
    if (memcmp(magic, "GGUF", sizeof magic) != 0)
        throw Failure(what + " is no GGUF file", "choose a file that ends in .gguf");
    return static_cast<uint64_t>(about.st_size);
}

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

GgufFile::GgufFile(const std::string &path, std::string what)
    : what_(std::move(what)), bytes_(file_bytes(path, what_)) {
    ggml_context *shapes = nullptr;
    header_.reset(gguf_init_from_file(path.c_str(), {/*no_alloc=*/true, &shapes}));
    const std::unique_ptr<ggml_context, void (*)(ggml_context *)> owned(shapes, ggml_free);
    if (!header_ || !shapes)
        throw Failure(what_ + " has a damaged header, or is cut off in it", COPY_AGAIN);
    read_tensors(shapes);
}

void GgufFile::read_tensors(ggml_context *shapes) {
    const uint64_t start = data_offset();
    for (int64_t i = 0; i < gguf_get_n_tensors(header_.get()); ++i) {
        const std::string name = gguf_get_tensor_name(header_.get(), i);
        const ggml_tensor *tensor = ggml_get_tensor(shapes, name.c_str());
        if (!tensor) throw Failure(what_ + " has a damaged header", COPY_AGAIN);
        const uint64_t offset = gguf_get_tensor_offset(header_.get(), i);
        const uint64_t size = gguf_get_tensor_size(header_.get(), i);
        if (start > bytes_ || offset > bytes_ - start || size > bytes_ - start - offset)
            throw Failure(what_ + " is cut off: it has " + std::to_string(bytes_) +
                              " bytes, and its tensors need more",
                          COPY_AGAIN);
        std::vector<int64_t> shape(tensor->ne, tensor->ne + ggml_n_dims(tensor));
        tensors_[name] = {tensor->type, std::move(shape),
                          static_cast<uint64_t>(ggml_nelements(tensor)), start + offset};
    }
}

int64_t GgufFile::find(const std::string &key) const {
    return gguf_find_key(header_.get(), key.c_str());
}

std::vector<std::string> GgufFile::keys() const {
    std::vector<std::string> found;
    for (int64_t i = 0; i < gguf_get_n_kv(header_.get()); ++i)
        found.emplace_back(gguf_get_key(header_.get(), i));
    return found;
}

gguf_type GgufFile::type(const std::string &key) const {
    const gguf_type type = gguf_get_kv_type(header_.get(), find(key));
    return type == GGUF_TYPE_ARRAY ? gguf_get_arr_type(header_.get(), find(key)) : type;
}

bool GgufFile::is_list(const std::string &key) const {
    return gguf_get_kv_type(header_.get(), find(key)) == GGUF_TYPE_ARRAY;
}

uint64_t GgufFile::length(const std::string &key) const {
    return has(key) && is_list(key) ? gguf_get_arr_n(header_.get(), find(key)) : 0;
}

std::optional<std::string> GgufFile::text(const std::string &key) const {
    if (!has(key) || is_list(key) || type(key) != GGUF_TYPE_STRING) return std::nullopt;
    return gguf_get_val_str(header_.get(), find(key));
}

std::optional<int64_t> GgufFile::integer(const std::string &key) const {
    if (!has(key) || is_list(key)) return std::nullopt;
    const auto *header = header_.get();
    const int64_t i = find(key);
    switch (type(key)) {
        case GGUF_TYPE_UINT8: return gguf_get_val_u8(header, i);
        case GGUF_TYPE_INT8: return gguf_get_val_i8(header, i);
        case GGUF_TYPE_UINT16: return gguf_get_val_u16(header, i);
        case GGUF_TYPE_INT16: return gguf_get_val_i16(header, i);
        case GGUF_TYPE_UINT32: return gguf_get_val_u32(header, i);
        case GGUF_TYPE_INT32: return gguf_get_val_i32(header, i);
        case GGUF_TYPE_UINT64: return static_cast<int64_t>(gguf_get_val_u64(header, i));
        case GGUF_TYPE_INT64: return gguf_get_val_i64(header, i);
        case GGUF_TYPE_BOOL: return gguf_get_val_bool(header, i) ? 1 : 0;
        default: return std::nullopt;
    }
}

std::optional<double> GgufFile::number(const std::string &key) const {
    if (!has(key) || is_list(key)) return std::nullopt;
    if (type(key) == GGUF_TYPE_FLOAT32) return gguf_get_val_f32(header_.get(), find(key));
    if (type(key) == GGUF_TYPE_FLOAT64) return gguf_get_val_f64(header_.get(), find(key));
    const auto whole = integer(key);
    return whole ? std::optional(static_cast<double>(*whole)) : std::nullopt;
}

std::vector<std::string> GgufFile::texts(const std::string &key) const {
    std::vector<std::string> found;
    if (!has(key) || !is_list(key) || type(key) != GGUF_TYPE_STRING) return found;
    for (uint64_t i = 0; i < length(key); ++i)
        found.emplace_back(gguf_get_arr_str(header_.get(), find(key), i));
    return found;
}

std::vector<int64_t> GgufFile::integers(const std::string &key) const {
    if (!has(key) || !is_list(key)) return {};
    const void *data = type(key) == GGUF_TYPE_STRING
                           ? nullptr
                           : gguf_get_arr_data(header_.get(), find(key));
    if (type(key) == GGUF_TYPE_INT32) {
        const auto *values = static_cast<const int32_t *>(data);
        return {values, values + length(key)};
    }
    if (type(key) == GGUF_TYPE_UINT32) {
        const auto *values = static_cast<const uint32_t *>(data);
        return {values, values + length(key)};
    }
    return {};
}

std::vector<double> GgufFile::numbers(const std::string &key) const {
    std::vector<double> found;
    if (!has(key) || !is_list(key) || type(key) == GGUF_TYPE_STRING) return found;
    const void *data = gguf_get_arr_data(header_.get(), find(key));
    for (size_t i = 0; i < length(key); ++i) found.push_back(element(type(key), data, i));
    return found;
}

int64_t GgufFile::count(const std::string &key) const {
    return integer(architecture() + "." + key).value_or(0);
}

uint64_t GgufFile::parameters() const {
    uint64_t sum = 0;
    for (const auto &[name, tensor] : tensors_) sum += tensor.elements;
    return sum;
}

}  // namespace worker
