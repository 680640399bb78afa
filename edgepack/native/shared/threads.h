// How many threads a model should run on.

#pragma once

#include <string>

namespace worker {

// The number of fast cores less one, at least one. Fast cores are those whose highest clock is
// within 20 % of the highest one: with slow cores a product waits for the slowest. Where the
// system tells no clocks, all cores are fast. `cpus` is the folder that lists the cores.
int default_threads(const std::string &cpus = "/sys/devices/system/cpu");

}  // namespace worker
