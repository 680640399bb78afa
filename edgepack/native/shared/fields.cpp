#include "fields.h"

#include <cmath>
#include <utility>

namespace worker {
namespace {

const json NONE = json::object();

std::string number_text(double value) {
    return std::floor(value) == value && std::abs(value) < 1e15
               ? std::to_string(static_cast<int64_t>(value))
               : json(value).dump();
}

std::string range(double least, double most) {
    return number_text(least) + " to " + number_text(most);
}

}  // namespace

std::string shorten(const std::string &text, size_t characters) {
    std::string found;
    size_t count = 0;
    for (const char c : text) {
        if ((c & 0xC0) != 0x80 && ++count > characters) return found + "…";
        found += static_cast<unsigned char>(c) < ' ' || c == 0x7F ? ' ' : c;
    }
    return found;
}

Fields::Fields(const json &object, std::string place) : object_(object), place_(std::move(place)) {
    if (!object.is_object()) refuse("", "an object", object);
}

const json *Fields::find(const char *name) const {
    const auto found = object_.find(name);
    return found == object_.end() || found->is_null() ? nullptr : &*found;
}

bool Fields::has(const char *name) const { return find(name) != nullptr; }

void Fields::refuse(const std::string &name, const std::string &expected,
                    const json &found) const {
    // A list or object is not quoted: it may be long, and deep.
    const std::string quoted = found.is_structured()
                                   ? found.type_name()
                                   : shorten(found.dump(-1, ' ', false,
                                                        json::error_handler_t::replace), 60);
    throw Failure(place_ + name + " should be " + expected + ", not " + quoted);
}

std::string Fields::text(const char *name) const {
    const json *found = find(name);
    if (!found) throw Failure(place_ + name + " is missing");
    if (!found->is_string()) refuse(name, "a text", *found);
    return found->get<std::string>();
}

std::string Fields::text(const char *name, const std::string &otherwise) const {
    return has(name) ? text(name) : otherwise;
}

std::string Fields::file(const char *name) const {
    const std::string found = text(name);
    if (found.empty() || found.find('\0') != std::string::npos)
        throw Failure(place_ + name + " names no file");
    return found;
}

std::optional<std::string> Fields::optional_file(const char *name) const {
    return has(name) ? std::optional(file(name)) : std::nullopt;
}

bool Fields::flag(const char *name, bool otherwise) const {
    const json *found = find(name);
    if (found && !found->is_boolean()) refuse(name, "true or false", *found);
    return found ? found->get<bool>() : otherwise;
}

int64_t Fields::integer(const char *name, int64_t otherwise, int64_t least, int64_t most) const {
    const json *found = find(name);
    if (!found) return otherwise;
    const double value = found->is_number() ? found->get<double>() : NAN;
    if (!(value >= static_cast<double>(least) && value <= static_cast<double>(most)) ||
        std::floor(value) != value) {
        refuse(name, "a whole number, " + range(least, most), *found);
    }
    return found->get<int64_t>();
}

double Fields::number(const char *name, double otherwise, double least, double most) const {
    const json *found = find(name);
    if (!found) return otherwise;
    const double value = found->is_number() ? found->get<double>() : NAN;
    if (!(value >= least && value <= most)) refuse(name, "a number, " + range(least, most), *found);
    return value;
}

std::vector<std::string> Fields::texts(const char *name) const {
    std::vector<std::string> result;
    if (!has(name)) return result;
    for (const json &item : array(name)) {
        if (!item.is_string()) refuse(name, "a list of texts", item);
        result.push_back(item.get<std::string>());
    }
    return result;
}

std::map<std::string, std::string> Fields::files(const char *name) const {
    std::map<std::string, std::string> result;
    const Fields inner(object(name), place_ + name + ".");
    for (const auto &[key, value] : object(name).items())
        result[key] = inner.file(key.c_str());
    return result;
}

std::map<std::string, double> Fields::numbers(const char *name, double least, double most) const {
    std::map<std::string, double> result;
    const Fields inner(object(name), place_ + name + ".");
    for (const auto &[key, value] : object(name).items()) {
        if (value.is_null()) inner.refuse(key, "a number, " + range(least, most), value);
        result[key] = inner.number(key.c_str(), 0.0, least, most);
    }
    return result;
}

const json &Fields::object(const char *name) const {
    const json *found = find(name);
    if (found && !found->is_object()) refuse(name, "an object", *found);
    return found ? *found : NONE;
}

const json &Fields::array(const char *name) const {
    const json *found = find(name);
    if (!found) throw Failure(place_ + name + " is missing");
    if (!found->is_array()) refuse(name, "a list", *found);
    return *found;
}

}  // namespace worker
