#include "render_child.h"

#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <new>
#include <optional>
#include <stdexcept>
#include <vector>

#include "frames.h"
#include "template.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"  // the headers define functions
#include "jinja/lexer.h"
#include "jinja/parser.h"
#include "jinja/runtime.h"
#pragma GCC diagnostic pop

namespace worker {
namespace {

constexpr rlim_t MEMORY = 512 << 20;       // bytes on top of what this process has
constexpr uint64_t CHARACTERS = 32 << 20;  // bytes that a template may write

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
    const auto rendered =
        jinja::runtime::gather_string_parts(jinja::runtime(context).execute(program));
    std::vector<Part> parts;
    uint64_t size = 0;
    for (const auto &part : rendered->val_str.parts) {
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

}  // namespace

void render_for(int in, int out, const std::string &source, const json &names) {
    limit_all();
    std::optional<jinja::program> program;
    std::string problem;
    bool parsed = false, refused = false;
    for (uint64_t size = 0; read_all(in, &size, sizeof size);) {
        std::string request(size, '\0');
        if (!read_all(in, request.data(), size)) break;
        limit(RLIMIT_CPU, static_cast<rlim_t>(cpu_seconds()) + TEMPLATE_SECONDS + 1);
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

}  // namespace worker
