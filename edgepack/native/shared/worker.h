// What edgepack's programs share: events, errors, memory, time.

#pragma once

#include <chrono>
#include <stdexcept>
#include <string>

#include "nlohmann/json.hpp"

namespace worker {

using json = nlohmann::json;

// Print an event.
void say(const json &event);

// Name the request that is being handled, or none: what ends the process fails it by its id.
void handling(const std::string *id);

// Print the event `failed` and end, without the C++ library, which may not work then.
[[noreturn]] void fail_at_once(const char *message, const char *detail);

// The first error of llama.cpp's log since `forget_errors`, in brackets; nothing if there was
// none. The first one is the cause, those behind it only say where it was noticed.
std::string first_error();
void forget_errors();

// A value that is not zero; zero is an error.
template <typename T>
T checked(T value, const std::string &failure) {
    if (!value) throw std::runtime_error(failure + first_error());
    return value;
}

// Let what goes wrong in llama.cpp, or crashes it, become an event. Called once, first.
void watch_for_failures();

// Processor time of this process.
double cpu_seconds();

// Memory of this process, by the system's accounting.
json memory();

class Clock {
  public:
    double seconds() const {
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    }

  private:
    std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace worker
