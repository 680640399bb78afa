#include "frames.h"

#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace worker {

void put(std::string &to, const std::string &text) {
    const uint64_t size = text.size();
    to.append(reinterpret_cast<const char *>(&size), sizeof size);
    to += text;
}

std::string take(const std::string &from, size_t &at) {
    uint64_t size = 0;
    if (from.size() - at < sizeof size) throw std::runtime_error("a message is cut");
    memcpy(&size, from.data() + at, sizeof size);
    at += sizeof size;
    if (from.size() - at < size) throw std::runtime_error("a message is cut");
    at += size;
    return from.substr(at - size, size);
}

bool write_all(int file, const std::string &text) {
    for (size_t at = 0; at < text.size();) {
        const ssize_t size = write(file, text.data() + at, text.size() - at);
        if (size < 0 && errno == EINTR) continue;
        if (size <= 0) return false;
        at += static_cast<size_t>(size);
    }
    return true;
}

bool read_all(int file, void *to, size_t size) {
    for (size_t at = 0; at < size;) {
        const ssize_t got = read(file, static_cast<char *>(to) + at, size - at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return false;
        at += static_cast<size_t>(got);
    }
    return true;
}

}  // namespace worker
