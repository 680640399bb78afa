#include "worker.h"

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>

#include "ggml.h"
#include "llama.h"

namespace worker {
namespace {

std::string logged;

void on_log(ggml_log_level level, const char *text, void *) {
    if (level != GGML_LOG_LEVEL_ERROR || !logged.empty()) return;
    logged = text;
    logged.erase(logged.find_last_not_of(" \n") + 1);
}

void on_signal(int number) {
    fail_at_once("llama.cpp crashed: ", number == SIGILL   ? "an instruction this CPU lacks"
                                        : number == SIGBUS ? "a file became shorter, or no memory"
                                                           : "a damaged file, or a defect");
}

void on_abort(const char *message) {
    const std::string quoted =
        json(message).dump(-1, ' ', false, json::error_handler_t::replace);
    fail_at_once("llama.cpp stopped: ", quoted.substr(1, quoted.size() - 2).c_str());
}

}  // namespace

void watch_for_failures() {
    for (const int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE, SIGABRT})
        signal(number, on_signal);
    ggml_set_abort_callback(on_abort);
    llama_log_set(on_log, nullptr);
}

std::string first_error() { return logged.empty() ? "" : " (" + logged + ")"; }

void forget_errors() { logged.clear(); }

void say(const json &event) {
    const std::string line = event.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    if (fputs(line.c_str(), stdout) < 0 || fflush(stdout) != 0) _exit(1);  // nobody listens
}

double cpu_seconds() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    return used.ru_utime.tv_sec + used.ru_stime.tv_sec +
           1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

json memory() {
    json found = {{"anonymous", 0}, {"mapped", 0}, {"peak", 0}};
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
        const auto add = [&](const char *name, const char *key) {
            if (line.rfind(name, 0) != 0) return;
            found[key] = found[key].get<int64_t>() + (std::stoll(line.substr(strlen(name))) << 10);
        };
        add("RssAnon:", "anonymous");
        add("RssFile:", "mapped");
        add("RssShmem:", "mapped");
        add("VmHWM:", "peak");
    }
    return found;
}

}  // namespace worker
