// Requests as lines of JSON on stdin, their events on stdout, and their cancellation.
//
// The protocol is docs/workers.md. A program says what it can do by a function that handles one
// request; everything else is here: broken lines, ids, `cancel`, errors, the end of the input.

#pragma once

#include <atomic>
#include <functional>
#include <string>

#include "fields.h"
#include "worker.h"

namespace worker {

// One request. Its first thread is the one that handles it; `cancel` comes from another one.
class Request {
  public:
    Request(std::string id, std::string action, json fields)
        : id(std::move(id)), action(std::move(action)), fields(std::move(fields)) {}

    const std::string id;
    const std::string action;  // the field `do`
    const json fields;

    // Print an event of this request.
    void event(const char *name, json fields = json::object()) const;

    // Whether it should end with what it has. May be asked from any thread, as often as needed.
    bool cancelled() const noexcept { return cancelled_.load(std::memory_order_relaxed); }
    void cancel() noexcept { cancelled_.store(true, std::memory_order_relaxed); }

  private:
    std::atomic<bool> cancelled_{false};
};

// The event that ends a request.
struct Last {
    const char *name;
    json fields = json::object();
};

// Print `ready`, then handle requests one after another until the input ends.
//
// `handle` prints the events of a request and returns the last one. What it throws becomes
// `failed`: a `Failure` with its hint, others with their message. It runs on the thread of the
// caller, while another thread reads lines and cancels. When the input ends, what is being done
// is cancelled, and what waits is dropped.
void serve(const char *program, const std::function<Last(const Request &)> &handle);

// The failure of a request for something that a program cannot do.
[[noreturn]] void refuse_action(const Request &request);

}  // namespace worker
