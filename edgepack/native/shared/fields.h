// Fields of a JSON object with the types that they must have.

#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "worker.h"

namespace worker {

// What goes wrong, as one sentence for a person, and what to do about it.
class Failure : public std::runtime_error {
  public:
    explicit Failure(const std::string &message, std::string hint = "")
        : std::runtime_error(message), hint(std::move(hint)) {}

    const std::string hint;
};

// At most so many characters of a text, on one line.
std::string shorten(const std::string &text, size_t characters = 120);

// Reads the fields of an object. A missing field and null are the same. A field of another type,
// or out of its range, is a `Failure` that names it. The object must outlive this.
class Fields {
  public:
    // `place` goes before the names in errors: `options.` or the like.
    explicit Fields(const json &object, std::string place = "");

    bool has(const char *name) const;

    std::string text(const char *name) const;
    std::string text(const char *name, const std::string &otherwise) const;
    // The place of a file: a text that is not empty and has no NUL.
    std::string file(const char *name) const;
    std::optional<std::string> optional_file(const char *name) const;
    bool flag(const char *name, bool otherwise) const;
    int64_t integer(const char *name, int64_t otherwise, int64_t least, int64_t most) const;
    double number(const char *name, double otherwise, double least, double most) const;
    std::vector<std::string> texts(const char *name) const;         // missing: none
    std::map<std::string, std::string> files(const char *name) const;  // missing: none
    std::map<std::string, double> numbers(const char *name, double least, double most) const;
    const json &object(const char *name) const;  // missing: an empty one
    const json &array(const char *name) const;   // must be there

  private:
    const json *find(const char *name) const;
    [[noreturn]] void refuse(const std::string &name, const std::string &expected,
                             const json &found) const;

    const json &object_;
    std::string place_;
};

}  // namespace worker
