// The static worker of `edgepack bench`: llama.cpp without Python, for phones and other machines.
//
//     edgepack-worker JOB
//
// It does one job, which is JSON, and prints one JSON object a line. Jobs and events are those of
// edgepack/bench/protocol.py; what is timed, and how, is the same as in edgepack/bench/worker.py.
// What goes wrong is the event `failed` and the exit code 1.

#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>

#include "ggml.h"
#include "llama.h"
#include "worker.h"

namespace worker {
namespace {

constexpr int VERSION = 1;

std::string logged;

void on_log(ggml_log_level level, const char *text, void *) {
    if (level != GGML_LOG_LEVEL_ERROR) return;
    logged = text;
    logged.erase(logged.find_last_not_of(" \n") + 1);
}

void on_signal(int number) {
    fail_at_once("llama.cpp crashed: ", number == SIGILL   ? "an instruction this CPU lacks"
                                        : number == SIGBUS ? "a file became shorter, or no memory"
                                                           : "a damaged file, or a defect");
}

void on_abort(const char *message) {
    say({{"event", "failed"}, {"message", std::string("llama.cpp stopped: ") + message}});
    _exit(1);
}

void say_started() {
    std::string features = llama_print_system_info();
    features.erase(features.find_last_not_of(" |") + 1);
    say({{"event", "started"},
         {"version", VERSION},
         {"runtime", std::string("llama.cpp, ggml ") + ggml_version()},
         {"features", features},
         {"memory", memory()}});
}

void run_job(const char *text) {
    const json job = json::parse(text);
    const std::string kind = job.at("job");
    checked(job.at("version") == VERSION, "the job is of another version: build the workers again");
    say_started();
    if (kind == "model")
        run_model(job);
    else if (kind == "memory")
        read_memory(job);
    else if (kind == "multiply")
        multiply(job);
    else
        throw std::runtime_error("there is no job " + kind);
}

}  // namespace

std::string last_error() { return logged.empty() ? "" : " (" + logged + ")"; }

void say(const json &event) {
    const std::string line = event.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    fputs(line.c_str(), stdout);
    fflush(stdout);
}

void say_ended() {
    rusage used{};
    getrusage(RUSAGE_SELF, &used);
    const double seconds = used.ru_utime.tv_sec + used.ru_stime.tv_sec +
                           1e-6 * (used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    say({{"event", "ended"}, {"cpu_seconds", seconds}, {"memory", memory()}});
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

int main(int argc, char **argv) {
    using namespace worker;
    if (argc != 2) {
        fputs("usage: edgepack-worker JOB\n", stderr);
        return 2;
    }
    for (const int number : {SIGILL, SIGSEGV, SIGBUS, SIGFPE}) signal(number, on_signal);
    ggml_set_abort_callback(on_abort);
    llama_log_set(on_log, nullptr);
    try {
        run_job(argv[1]);
    } catch (const json::exception &error) {
        say({{"event", "failed"}, {"message", std::string("this is no job: ") + error.what()}});
        return 1;
    } catch (const std::exception &error) {
        say({{"event", "failed"}, {"message", error.what()}});
        return 1;
    }
    return 0;
}
