#include "renderer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <utility>

#include "fields.h"
#include "frames.h"
#include "render_child.h"

namespace worker {
namespace {

constexpr int PATIENCE = 60;  // wall-clock seconds; much more than a rendering may take
constexpr const char *NO_LIMIT_KEPT = "it needs too much memory, or more than 5 seconds";

// The bytes that arrive until a time; fewer if the sender ends, or takes too long.
class Arriving {
  public:
    explicit Arriving(int file) : file_(file) {}

    bool read_into(char *to, size_t size) {
        for (size_t at = 0; at < size;) {
            pollfd wait{file_, POLLIN, 0};
            const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
                end_ - std::chrono::steady_clock::now());
            const int ready = poll(&wait, 1, static_cast<int>(std::max<int64_t>(0, left.count())));
            if (ready < 0 && errno == EINTR) continue;
            timed_out = ready == 0;
            if (ready <= 0) return false;
            const ssize_t got = read(file_, to + at, size - at);
            if (got < 0 && errno == EINTR) continue;
            if (got <= 0) return false;
            at += static_cast<size_t>(got);
        }
        return true;
    }

    bool timed_out = false;

  private:
    const int file_;
    const std::chrono::steady_clock::time_point end_ =
        std::chrono::steady_clock::now() + std::chrono::seconds(PATIENCE);
};

Renderer::Answer read_answer(const std::string &text) {
    size_t at = 0;
    const std::string kind = take(text, at);
    Renderer::Answer answer{Renderer::Kind::failed, {}, ""};
    if (kind == "rendered") {
        answer.kind = Renderer::Kind::rendered;
        while (at < text.size()) {
            const bool typed = take(text, at) == "1";
            answer.parts.push_back({take(text, at), typed});
        }
    } else {
        if (kind == "refused") answer.kind = Renderer::Kind::refused;
        answer.reason = take(text, at);
    }
    return answer;
}

}  // namespace

Renderer::Renderer(std::string source, json names)
    : source_(std::move(source)), names_(std::move(names)) {}

Renderer::~Renderer() { stop(); }

void Renderer::start() {
    signal(SIGPIPE, SIG_IGN);  // a request to a process that has ended is an error, not our end
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) throw Failure("no pipe for the chat template");
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]), close(in[1]);
        throw Failure("no pipe for the chat template");
    }
    child_ = fork();
    if (child_ == 0) {
        // This process has a copy of everything, but must not hold our stdin and stdout open.
        const int nothing = open("/dev/null", O_RDWR);
        for (const int file : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) dup2(nothing, file);
        close(in[1]), close(out[0]);
        render_for(in[0], out[1], source_, names_);
    }
    close(in[0]), close(out[1]);
    to_ = in[1], from_ = out[0];
    if (child_ < 0) {
        stop();
        throw Failure("the chat template needs another process, and there can be none now",
                      "close other apps");
    }
}

void Renderer::stop() {
    if (to_ >= 0) close(to_);
    if (from_ >= 0) close(from_);
    to_ = from_ = -1;
    if (child_ > 0) {
        kill(child_, SIGKILL);
        while (waitpid(child_, nullptr, 0) < 0 && errno == EINTR) {
        }
    }
    child_ = -1;
}

Renderer::Answer Renderer::ask(const std::vector<Message> &messages, bool add_generation_prompt) {
    std::string request, framed;
    put(request, add_generation_prompt ? "1" : "0");
    for (const Message &message : messages) {
        put(request, message.role);
        put(request, message.content);
    }
    put(framed, request);
    if (child_ > 0 && waitpid(child_, nullptr, WNOHANG) == child_) {  // somebody ended it
        child_ = -1;
        stop();
    }
    if (child_ < 0) start();
    Arriving arriving(from_);
    uint64_t size = 0;
    std::string answer;
    bool arrived = write_all(to_, framed) &&
                   arriving.read_into(reinterpret_cast<char *>(&size), sizeof size);
    if (arrived) {
        answer.resize(size);
        arrived = arriving.read_into(answer.data(), size);
    }
    if (arrived) return read_answer(answer);
    stop();
    return {Kind::failed, {}, arriving.timed_out ? "it takes too long" : NO_LIMIT_KEPT};
}

}  // namespace worker
