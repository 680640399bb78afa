// The header of a GGUF file: its metadata, and where its tensors lie.

#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ggml.h"
#include "gguf.h"

namespace worker {

struct FreeGguf {
    void operator()(gguf_context *header) const { gguf_free(header); }
};

class GgufFile {
  public:
    struct Tensor {
        ggml_type type;
        std::vector<int64_t> shape;  // ggml's order: the size of a row first; no ones at the end
        uint64_t elements;
        uint64_t offset;  // in the file
    };

    // `Failure` if it is no GGUF, is damaged, or ends before its last tensor. `what` names the
    // file in errors, which have no paths.
    GgufFile(const std::string &path, std::string what);

    std::vector<std::string> keys() const;
    bool has(const std::string &key) const { return find(key) >= 0; }
    gguf_type type(const std::string &key) const;     // of the elements, if it is a list
    bool is_list(const std::string &key) const;
    uint64_t length(const std::string &key) const;    // of a list
    std::optional<std::string> text(const std::string &key) const;
    std::optional<int64_t> integer(const std::string &key) const;  // of any integer type, or bool
    std::optional<double> number(const std::string &key) const;    // of any type of numbers
    std::vector<std::string> texts(const std::string &key) const;  // of a list; none if it is none
    std::vector<int64_t> integers(const std::string &key) const;   // of 32 bits; likewise
    std::vector<double> numbers(const std::string &key) const;     // of any type; likewise

    std::string architecture() const { return text("general.architecture").value_or(""); }
    // `integer` of a key that begins with the architecture's name; 0 if there is none.
    int64_t count(const std::string &key) const;

    const std::map<std::string, Tensor> &tensors() const { return tensors_; }
    uint64_t bytes() const { return bytes_; }  // of the file
    uint64_t data_offset() const { return gguf_get_data_offset(header_.get()); }
    uint64_t parameters() const;
    const std::string &what() const { return what_; }

  private:
    int64_t find(const std::string &key) const;
    void read_tensors(ggml_context *shapes);

    std::string what_;
    uint64_t bytes_ = 0;
    std::unique_ptr<gguf_context, FreeGguf> header_;
    std::map<std::string, Tensor> tensors_;
};

}  // namespace worker
