// The jobs of the benchmark, see edgepack/bench/protocol.py.

#pragma once

#include "../shared/worker.h"

namespace worker {

void run_model(const json &job);
void read_memory(const json &job);
void multiply(const json &job);

// Print the last event, while what the job used is still in memory.
void say_ended();

}  // namespace worker
