// Rows of numbers that a run keeps: in memory, or in a file without a name that dies with it.

#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace worker::tune {

class Arrays {
  public:
    // Zeros, so many of them in each array; in a file beside `place` unless it is empty.
    Arrays(std::vector<size_t> sizes, const std::string &place);
    ~Arrays();
    Arrays(const Arrays &) = delete;
    Arrays &operator=(const Arrays &) = delete;

    size_t count() const { return sizes_.size(); }
    size_t size(size_t index) const { return sizes_[index]; }
    void read(size_t index, float *out) const;
    std::vector<float> read(size_t index) const;
    void write(size_t index, const float *values);
    void clear();  // all zeros

  private:
    std::vector<size_t> sizes_, starts_;
    std::vector<std::vector<float>> kept_;
    int file_ = -1;
};

}  // namespace worker::tune
