// A GGUF file of which only the header is kept; values are read from the disk when they are used.
//
// pread, not mmap: pages of a mapped file count as memory of the process.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "../shared/gguf_file.h"
#include "ggml.h"

namespace worker::tune {

class File {
  public:
    // `what` is its name in errors: "the model".
    File(const std::string &path, std::string what);
    ~File();
    File(const File &) = delete;
    File &operator=(const File &) = delete;

    // Bytes at an offset; a `Failure` if there are fewer.
    void read(void *out, size_t size, uint64_t offset) const;

    const std::string what;
    uint64_t size() const { return size_; }

  private:
    int descriptor_;
    uint64_t size_;
};

// A tensor in a file: `rows` rows of `columns` values.
struct Stored {
    ggml_type type = GGML_TYPE_F32;
    int64_t columns = 0, rows = 0;
    uint64_t offset = 0;

    size_t row_bytes() const { return ggml_row_size(type, columns); }
};

struct WeightFile {
    std::unique_ptr<File> file;
    std::unique_ptr<GgufFile> header;  // tokenizers are large: freed when the facts are read
    std::map<std::string, Stored> tensors;
    uint64_t data_offset = 0;

    static WeightFile open(const std::string &path, const std::string &what);

    // All of a tensor as float32.
    std::vector<float> values(const Stored &tensor) const;

    // A number for the file: its header, its size, and samples of its values.
    uint64_t fingerprint() const;
};

// A number of the metadata; of a list that has one for each block the first, if all are alike.
double number_of(const GgufFile &header, const std::string &key, double otherwise);

// Rows `row` … `row + count − 1` of a tensor, of each `width` values from `column` on (whole blocks
// of its type), as float32. `scratch` is used again by the next call.
void decode(const File &file, const Stored &tensor, int64_t row, int64_t count, int64_t column,
            int64_t width, float *out, int64_t stride, std::vector<uint8_t> &scratch);

// FNV-1a, continued from `seed`.
uint64_t hash_of(const void *data, size_t size, uint64_t seed = 0xcbf29ce484222325ULL);

}  // namespace worker::tune
