// The static worker of `edgepack bench`: llama.cpp without Python, for phones and other machines.
//
//     edgepack-bench JOB
//
// It does one job, which is JSON, and prints one JSON object a line. Jobs and events are those of
// edgepack/bench/protocol.py; what is timed, and how, is the same as in edgepack/bench/worker.py.
// What goes wrong is the event `failed` and the exit code 1.

#include <cstdio>
#include <string>

#include "bench.h"
#include "ggml.h"
#include "llama.h"

namespace worker {
namespace {

constexpr int VERSION = 1;

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

void say_ended() {
    say({{"event", "ended"}, {"cpu_seconds", cpu_seconds()}, {"memory", memory()}});
}

}  // namespace worker

int main(int argc, char **argv) {
    using namespace worker;
    if (argc != 2) {
        fputs("usage: edgepack-bench JOB\n", stderr);
        return 2;
    }
    watch_for_failures();
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
