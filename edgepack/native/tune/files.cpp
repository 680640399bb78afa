#include "files.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <vector>

#include "../shared/fields.h"

namespace worker::tune {

NewFile::NewFile(std::string path, std::string what)
    : path_(std::move(path)), temporary_(path_ + ".tmp"), what_(std::move(what)) {
    file_ = open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (file_ < 0) fail();
}

NewFile::~NewFile() {
    if (file_ < 0) return;
    close(file_);
    unlink(temporary_.c_str());
}

void NewFile::write(const void *data, size_t size) {
    const auto *from = static_cast<const char *>(data);
    while (size) {
        const ssize_t count = ::write(file_, from, size);
        if (count < 0 && errno == EINTR) continue;
        if (count <= 0) fail();
        from += count, size -= count, size_ += count;
    }
}

void NewFile::pad(size_t alignment) {
    const std::vector<char> zeros((alignment - size_ % alignment) % alignment);
    write(zeros.data(), zeros.size());
}

void NewFile::commit() {
    if (fsync(file_) != 0) fail();
    if (close(file_) != 0 || rename(temporary_.c_str(), path_.c_str()) != 0) {
        file_ = -1;
        unlink(temporary_.c_str());
        fail();
    }
    file_ = -1;
    const size_t slash = path_.rfind('/');
    const std::string folder = slash == std::string::npos ? "." : path_.substr(0, slash + 1);
    const int directory = open(folder.c_str(), O_RDONLY | O_CLOEXEC);
    if (directory >= 0) {
        fsync(directory);  // some file systems have none; the file itself is safe
        close(directory);
    }
}

void NewFile::fail() const {
    if (errno == ENOSPC || errno == EDQUOT || errno == EFBIG)
        throw Failure("the disk is full: " + what_ + " is not written", "free some space");
    throw Failure(what_ + " cannot be written", "choose a folder that can be written to");
}

}  // namespace worker::tune
