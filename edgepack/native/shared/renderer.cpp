#include "renderer.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>
#include <utility>

#include "fields.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"  // the headers define functions
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#pragma GCC diagnostic pop

namespace worker {
namespace {

// The limits of one rendering. Real templates take a millisecond.
constexpr rlim_t SECONDS = 5;                       // of processor time
constexpr int PATIENCE = 60;                        // wall-clock seconds
constexpr rlim_t MEMORY = 512 << 20;                // bytes on top of what this process has
constexpr uint64_t CHARACTERS = 32 << 20;           // bytes that a template may write
constexpr const char *NO_LIMIT_KEPT = "it needs too much memory, or more than 5 seconds";

// --- Messages between the processes: texts with their lengths ---

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

// --- In the other process ---

jinja::value messages_of(const std::string &request, size_t &at) {
    auto list = jinja::mk_val<jinja::value_array>();
    while (at < request.size()) {
        auto message = jinja::mk_val<jinja::value_object>();
        message->insert("role", jinja::mk_val<jinja::value_string>(take(request, at)));
        auto content = jinja::mk_val<jinja::value_string>(take(request, at));
        content->mark_input();
        message->insert("content", content);
        list->push_back(message);
    }
    return list;
}

std::vector<Part> run(const jinja::program &program, const std::string &source, const json &names,
                      const std::string &request) {
    size_t at = 0;
    const bool starts_answer = take(request, at) == "1";
    jinja::context context(source);
    for (const auto &[name, text] : names.items())
        context.set_val(name, jinja::mk_val<jinja::value_string>(text.get<std::string>()));
    context.set_val("messages", messages_of(request, at));
    context.set_val("tools", jinja::mk_val<jinja::value_none>());
    context.set_val("documents", jinja::mk_val<jinja::value_none>());
    context.set_val("add_generation_prompt", jinja::mk_val<jinja::value_bool>(starts_answer));
    const auto results = jinja::runtime(context).execute(program);
    std::vector<Part> parts;
    uint64_t size = 0;
    for (const auto &part : jinja::runtime::gather_string_parts(results)->val_str.parts) {
        size += part.val.size();
        if (size > CHARACTERS)
            throw std::runtime_error("it writes more than " + std::to_string(CHARACTERS) +
                                     " characters");
        parts.push_back({part.val, part.is_input});
    }
    return parts;
}

// The engine's errors quote the template; the reason is behind the last "Error: ".
std::string reason_of(const std::string &error, bool &refused) {
    constexpr const char *MARK = "Error: ", *RAISED = "Jinja Exception: ";
    std::string found = error;
    if (const size_t at = found.rfind(MARK); at != std::string::npos)
        found = found.substr(at + strlen(MARK));
    if (const size_t at = found.rfind(RAISED); at != std::string::npos) {
        refused = true;
        found = found.substr(at + strlen(RAISED));
    }
    found.erase(0, found.find_first_not_of(" \n"));
    return found.substr(0, found.find('\n'));
}

std::string answer_to(const std::optional<jinja::program> &program, const std::string &problem,
                      const std::string &source, const json &names, const std::string &request) {
    std::string answer;
    if (!program) {
        put(answer, "failed");
        put(answer, problem);
        return answer;
    }
    bool refused = false;
    try {
        const auto parts = run(*program, source, names, request);
        put(answer, "rendered");
        for (const Part &part : parts) {
            put(answer, part.typed ? "1" : "0");
            put(answer, part.text);
        }
    } catch (const std::bad_alloc &) {
        answer.clear();
        put(answer, "failed");
        put(answer, "it needs too much memory");
    } catch (const std::exception &error) {
        const std::string reason = reason_of(error.what(), refused);
        answer.clear();
        put(answer, refused ? "refused" : "failed");
        put(answer, reason);
    }
    return answer;
}

void limit(int what, rlim_t soft) {
    rlimit now{};
    if (getrlimit(what, &now) != 0) return;
    now.rlim_cur = std::min(soft, now.rlim_max);
    setrlimit(what, &now);
}

void limit_all() {
    for (const int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT}) signal(number, SIG_DFL);
    uint64_t pages = 0;
    std::ifstream("/proc/self/statm") >> pages;
    limit(RLIMIT_CORE, 0);
    limit(RLIMIT_FSIZE, 0);
    if (pages) limit(RLIMIT_AS, pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE)) + MEMORY);
}

[[noreturn]] void render_for(int in, int out, const std::string &source, const json &names) {
    limit_all();
    std::optional<jinja::program> program;
    std::string problem;
    bool parsed = false, refused = false;
    for (uint64_t size = 0; read_all(in, &size, sizeof size);) {
        std::string request(size, '\0');
        if (!read_all(in, request.data(), size)) break;
        limit(RLIMIT_CPU, static_cast<rlim_t>(cpu_seconds()) + SECONDS + 1);
        if (!parsed) {
            parsed = true;
            try {
                program.emplace(jinja::parse_from_tokens(jinja::lexer().tokenize(source)));
            } catch (const std::exception &error) {
                problem = reason_of(error.what(), refused);
            }
        }
        std::string framed;
        put(framed, answer_to(program, problem, source, names, request));
        if (!write_all(out, framed)) break;
    }
    _exit(0);
}

// --- In this process ---

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
