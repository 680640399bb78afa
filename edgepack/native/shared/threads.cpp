#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <fstream>
#include <string>
#include <vector>

namespace worker {

int default_threads() {
    cpu_set_t allowed;  // Android gives apps in the background fewer cores
    CPU_ZERO(&allowed);
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return 1;
    std::vector<long> clocks;
    for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
        if (!CPU_ISSET(cpu, &allowed)) continue;
        std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) +
                           "/cpufreq/cpuinfo_max_freq");
        long clock = 0;
        file >> clock;
        clocks.push_back(clock);
    }
    const long highest = clocks.empty() ? 0 : *std::max_element(clocks.begin(), clocks.end());
    const auto fast = std::count_if(clocks.begin(), clocks.end(),
                                    [&](long clock) { return 5 * clock >= 4 * highest; });
    return std::max(1, static_cast<int>(fast) - 1);
}

}  // namespace worker
