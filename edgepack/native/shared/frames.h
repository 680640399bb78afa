// Messages between two processes: texts with their lengths.

#pragma once

#include <cstddef>
#include <string>

namespace worker {

// Append a text with its length; read the next one from `at` on, which moves behind it.
void put(std::string &to, const std::string &text);
std::string take(const std::string &from, size_t &at);

// All bytes, through a pipe; false if the other side has ended.
bool write_all(int file, const std::string &text);
bool read_all(int file, void *to, size_t size);

}  // namespace worker
