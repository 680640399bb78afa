// A training: what a request asks for, its steps, and the state from which it goes on.
//
// Nothing that a step does depends on what ran before it in this process: the order of the examples
// and the first values follow from the seed. So a killed training that goes on from its last state
// makes the very losses that the whole one would have made.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "../shared/lines.h"
#include "learner.h"
#include "state.h"

namespace worker::tune {

class Training {
  public:
    // Reads what a request names, and plans; all that is wrong with it is thrown here.
    explicit Training(const Request &request);

    // The last event of each.
    Last plan();
    Last train();
    Last gradient();

  private:
    void begin();  // parameters, as they are in the state if there is one
    json planned() const;
    std::vector<Lesson> lessons(size_t step) const;
    Loss make_gradients();
    void make_step();
    Last finish();
    Last end(const char *reason) const;
    uint64_t key() const;
    uint64_t learnt_tokens(const std::vector<Lesson> &lessons) const;
    size_t steps() const;
    size_t batch() const;
    bool keeps_general() const { return !replay_.empty(); }

    const Request &request_;
    const Fields fields_;
    const Options options_;
    const Model model_;
    Factors factors_;
    Examples examples_;
    std::vector<Example> replay_;
    Engine engine_;
    Layout layout_;
    std::string state_;
    Curve curve_;
    std::unique_ptr<Parameters> parameters_;
    std::unique_ptr<Learner> learner_;
    Clock clock_, saved_;
};

}  // namespace worker::tune
