// How many threads a model should run on.

#pragma once

namespace worker {

// The number of fast cores less one, at least one. Fast cores are those whose highest clock is
// within 20 % of the highest one: in a product of several threads the others wait for the
// slowest. Where the system tells no clocks, all cores are fast.
int default_threads();

}  // namespace worker
