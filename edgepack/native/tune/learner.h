// Gradients of some examples: one sweep forward, one back, one block's inside at a time.

#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "arrays.h"
#include "block.h"
#include "examples.h"
#include "head.h"
#include "layout.h"
#include "parameters.h"

namespace worker::tune {

// An example in a step. `teacher` is the number of the general text whose untuned predictions it
// should keep, or −1: then its labels are learnt.
struct Lesson {
    const Example *example;
    int teacher = -1;
    double share = 1;  // of each of its tokens in the loss
};

struct Loss {
    double answers = 0, replay = 0;  // each a sum of shares
};

class Learner {
  public:
    // `place`: files without names are made beside it. `stopped` is asked between blocks; once it
    // is true, `learn` ends early and its sums are of no use.
    Learner(Engine &engine, const Model &model, Parameters &parameters, const Layout &layout,
            std::string place, std::function<bool()> stopped);

    // Adds the gradients of Σ share · loss to the parameters' gradients.
    Loss learn(std::vector<Lesson> lessons);

  private:
    struct Batch {
        std::vector<Lesson> lessons;
        Shape shape;
    };
    std::vector<Batch> batches(std::vector<Lesson> lessons) const;
    Loss learn(const Batch &batch);
    Loss at_the_end(const Batch &batch, std::vector<float> &x);
    std::vector<float> embedded(const Batch &batch) const;
    void teach(const Lesson &lesson);
    Targets targets(const Batch &batch);

    Engine &engine_;
    const Model &model_;
    Parameters &parameters_;
    const Layout layout_;
    const std::string place_;
    const std::function<bool()> stopped_;
    Block block_;
    Head head_;
    struct Teacher {
        std::unique_ptr<Arrays> rows;
        std::vector<double> constants;
    };
    std::map<int, Teacher> teachers_;
};

// Positions of an example that are learnt.
std::vector<int64_t> places(const Example &example);

}  // namespace worker::tune
