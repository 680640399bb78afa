// Files that appear whole or not at all: written under another name, synced, renamed.

#pragma once

#include <cstdint>
#include <string>

namespace worker::tune {

class NewFile {
  public:
    // `what` is its name in errors: "the adapter".
    NewFile(std::string path, std::string what);
    ~NewFile();  // what was not committed is removed
    NewFile(const NewFile &) = delete;
    NewFile &operator=(const NewFile &) = delete;

    void write(const void *data, size_t size);
    void pad(size_t alignment);  // with zeros
    uint64_t size() const { return size_; }
    void commit();

  private:
    [[noreturn]] void fail() const;

    const std::string path_, temporary_, what_;
    int file_;
    uint64_t size_ = 0;
};

}  // namespace worker::tune
