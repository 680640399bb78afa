#include "lines.h"

#include <unistd.h>

#include <cerrno>
#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <optional>
#include <thread>

#include "ggml.h"
#include "llama.h"

namespace worker {
namespace {

constexpr int VERSION = 1;
constexpr size_t LINE_BYTES = 4 << 20;
constexpr size_t ID_CHARACTERS = 64;
constexpr size_t WAITING = 256;  // requests, so that a broken asker cannot fill the memory
constexpr int DEPTH = 32;        // of brackets in a line

void fail(const json &id, const std::string &message, const std::string &hint = "") {
    json event = {{"id", id}, {"event", "failed"}, {"message", message}};
    if (!hint.empty()) event["hint"] = hint;
    say(event);
}

// Lines of stdin without their ends; a line that is too long is an empty text and `failed`.
class Input {
  public:
    std::optional<std::string> line() {
        std::string found;
        bool too_long = false;
        for (;;) {
            if (at_ == size_ && !fill()) {
                if (found.empty() && !too_long) return std::nullopt;
                break;  // the last line may have no end
            }
            const char c = buffer_[at_++];
            if (c == '\n') break;
            too_long = too_long || found.size() >= LINE_BYTES;
            if (!too_long) found += c;
        }
        if (too_long) {
            fail(nullptr, "a line has more than 4 MB");
            return "";
        }
        return found;
    }

  private:
    bool fill() {
        ssize_t size;
        do {
            size = read(STDIN_FILENO, buffer_, sizeof buffer_);
        } while (size < 0 && errno == EINTR);
        at_ = 0;
        size_ = size > 0 ? static_cast<size_t>(size) : 0;
        return size > 0;
    }

    char buffer_[1 << 16];
    size_t at_ = 0, size_ = 0;
};

json parse(const std::string &line) {
    const auto limit = [](int depth, json::parse_event_t, json &) {
        if (depth > DEPTH) throw Failure("a line is nested too deeply");
        return true;
    };
    try {
        return json::parse(line, limit);
    } catch (const json::exception &) {
        throw Failure("a line is not valid JSON in UTF-8");
    }
}

std::string read_id(const json &line) {
    if (!line.is_object()) throw Failure("a line is no JSON object");
    const std::string id = Fields(line).text("id");
    size_t count = 0;
    for (const char c : id) count += (c & 0xC0) != 0x80;
    if (count < 1 || count > ID_CHARACTERS) throw Failure("an id has 1 to 64 characters");
    return id;
}

// The requests that wait or are being handled.
class Requests {
  public:
    void read() {
        Input input;
        while (const auto line = input.line()) {
            if (line->find_first_not_of(" \t\r") != std::string::npos) take(*line);
        }
        const std::lock_guard lock(mutex_);
        ended_ = true;
        for (auto &[id, request] : open_) request->cancel();
        waiting_.clear();
        changed_.notify_one();
    }

    // The next one; null when the input has ended.
    std::shared_ptr<Request> next() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [&] { return ended_ || !waiting_.empty(); });
        if (waiting_.empty()) return nullptr;
        auto found = waiting_.front();
        waiting_.pop_front();
        return found;
    }

    void close(const Request &request) {
        const std::lock_guard lock(mutex_);
        open_.erase(request.id);
    }

  private:
    void take(const std::string &text) {
        json id = nullptr;
        try {
            json line = parse(text);
            const std::string name = read_id(line);
            if (is_open(name)) throw Failure("a request with this id is being handled");
            id = name;
            const std::string action = Fields(line).text("do");
            if (action == "cancel")
                cancel(name, Fields(line).text("request"));
            else
                add(std::make_shared<Request>(name, action, std::move(line)));
        } catch (const Failure &failure) {
            fail(id, failure.what(), failure.hint);
        } catch (const std::bad_alloc &) {
            fail(id, "not enough memory for this line");
        }
    }

    bool is_open(const std::string &id) {
        const std::lock_guard lock(mutex_);
        return open_.count(id) > 0;
    }

    void cancel(const std::string &id, const std::string &which) {
        {
            const std::lock_guard lock(mutex_);
            const auto found = open_.find(which);
            if (found != open_.end()) found->second->cancel();
        }
        say({{"id", id}, {"event", "done"}});
    }

    void add(std::shared_ptr<Request> request) {
        const std::lock_guard lock(mutex_);
        if (waiting_.size() >= WAITING) throw Failure("too many requests are waiting");
        open_[request->id] = request;
        waiting_.push_back(std::move(request));
        changed_.notify_one();
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<std::shared_ptr<Request>> waiting_;
    std::map<std::string, std::shared_ptr<Request>> open_;
    bool ended_ = false;
};

void say_ready(const char *program) {
    std::string features = llama_print_system_info();
    features.erase(features.find_last_not_of(" |") + 1);
    say({{"event", "ready"},
         {"id", nullptr},
         {"program", program},
         {"version", VERSION},
         {"runtime", std::string("llama.cpp, ggml ") + ggml_version()},
         {"features", features},
         {"memory", memory()}});
}

}  // namespace

void Request::event(const char *name, json fields) const {
    fields["id"] = id;
    fields["event"] = name;
    say(fields);
}

void refuse_action(const Request &request) {
    throw Failure("this program cannot do " + shorten(json(request.action).dump(), 60));
}

void serve(const char *program, const std::function<Last(const Request &)> &handle) {
    handling(nullptr);
    say_ready(program);
    Requests requests;
    std::thread reader([&] { requests.read(); });
    while (const auto request = requests.next()) {
        handling(&request->id);
        forget_errors();
        std::optional<Failure> failure;
        Last last{};
        try {
            last = handle(*request);
        } catch (const Failure &error) {
            failure.emplace(error);
        } catch (const std::bad_alloc &) {
            failure.emplace("not enough memory", "close other apps, or choose a smaller model");
        } catch (const std::exception &error) {
            failure.emplace(shorten(error.what(), 300));
        }
        handling(nullptr);
        requests.close(*request);  // before its last event, after which the id is free
        if (failure)
            fail(request->id, failure->what(), failure->hint);
        else
            request->event(last.name, std::move(last.fields));
    }
    reader.join();
}

}  // namespace worker
