#include "layout.h"

#include <algorithm>

#include "head.h"
#include "parameters.h"

#ifdef __GLIBC__
#include <malloc.h>
#endif

namespace worker::tune {
namespace {

constexpr int64_t USUAL_POSITIONS = 256;  // more are hardly faster
constexpr int64_t COPIES = 4;             // of every parameter: itself, two moments, its gradient
// Code, stacks of threads and small objects that are used first in training.
constexpr int64_t SLACK = 3 << 20;
// A process holds a little more or less from one call to the next; a figure that a person is
// told must still be enough when it comes back as the limit.
constexpr int64_t DRIFT = 2 << 20;
constexpr int64_t FLOAT = sizeof(float);

// Pairs of a block's weights, all zero: only their sizes matter.
LayerPairs empty_pairs(const Model &model, const Factors &factors, const Options &options,
                       const std::vector<Learning> &weights, int64_t layer) {
    LayerPairs found;
    for (int i = 0; i < ROLES; i++) {
        const Role role = static_cast<Role>(i);
        Pairs &pairs = found[i];
        for (const Learning &w : weights)
            if (w.layer == layer && w.role == role) pairs.rank = pairs.trained = w.rank;
        const Factor *frozen = factors.find(layer, role);
        if (frozen && (options.stack || !pairs.trained)) pairs.rank += frozen->rank();
        pairs.rank = (pairs.rank + RANK_STEP - 1) / RANK_STEP * RANK_STEP;
        pairs.A.resize(pairs.rank * model.facts.in(role));
        pairs.B.resize(pairs.rank * model.facts.out(role));
    }
    return found;
}

class Planner {
  public:
    Planner(Engine &engine, const Model &model, const Factors &factors, const Options &options,
            int64_t longest, int64_t kept)
        : engine_(engine), model_(model), factors_(factors), options_(options),
          weights_(learning(model, factors, options)), longest_(longest), kept_(kept),
          now_(memory()) {}

    int64_t peak(const Layout &layout) const {
        const int64_t base =
            now_["anonymous"].get<int64_t>() + now_["mapped"].get<int64_t>() + SLACK;
        const int64_t needed = base + parameters(layout) + gradients(layout);
        return std::max(needed, now_["peak"].get<int64_t>());
    }

  private:
    int64_t parameters(const Layout &layout) const {
        int64_t count = 0, largest = 0;
        for (const Learning &w : weights_) {
            const int64_t in = w.rank * model_.facts.in(w.role);
            const int64_t out = w.rank * model_.facts.out(w.role);
            count += in + out;
            largest = std::max({largest, in, out});
        }
        const int64_t teachers = kept_ * model_.facts.hidden;
        if (layout.parameters_on_disk) return 6 * largest * FLOAT;
        return (COPIES * count + 4 * largest + teachers) * FLOAT;
    }

    // Everything that grows with the positions of a micro-batch, and a block's inside.
    int64_t gradients(const Layout &layout) const {
        std::vector<int64_t> lengths;
        for (int64_t rest = layout.positions; rest > 0; rest -= lengths.back())
            lengths.push_back(std::min(rest, longest_));
        const Shape shape(lengths);
        const Facts &f = model_.facts;
        const int64_t lowest = weights_.front().layer, x = shape.size() * f.hidden * FLOAT;
        const LayerPairs pairs = empty_pairs(model_, factors_, options_, weights_, lowest);
        int64_t own = 0;  // pairs, and their gradients outside the graph
        for (const Pairs &pair : pairs) own += 2 * (pair.A.size() + pair.B.size()) * FLOAT;
        const int64_t inputs = layout.inputs_on_disk ? 0 : (f.blocks - lowest) * x;
        const int64_t inside = Block(engine_, model_).measure(lowest, pairs, shape);
        Head head(engine_, model_, head_pairs(model_, factors_));
        const auto loss = static_cast<int64_t>(head.measure(shape.size()));
        return inputs + 3 * x + std::max(own + inside, loss);
    }

    Engine &engine_;
    const Model &model_;
    const Factors &factors_;
    const Options &options_;
    const std::vector<Learning> weights_;
    const int64_t longest_, kept_;
    const json now_;
};

std::string megabytes(int64_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

}  // namespace

Layout choose_layout(Engine &engine, const Model &model, const Factors &factors,
                     const Options &options, int64_t longest, int64_t kept) {
    const Planner planner(engine, model, factors, options, longest, kept);
    int64_t least = INT64_MAX;
    for (const auto &[inputs, parameters] : {std::pair{false, false}, {true, false}, {true, true}}) {
        int64_t before = 0;
        for (const int64_t some : {USUAL_POSITIONS, USUAL_POSITIONS / 2, longest}) {
            const int64_t positions = std::max(some, longest);
            if (positions == before) continue;
            before = positions;
            Layout layout{positions, inputs, parameters, 0};
            layout.peak = planner.peak(layout);
            if (!options.memory || layout.peak <= *options.memory) return layout;
            least = std::min(least, layout.peak);
        }
    }
    throw Failure(megabytes(*options.memory) + " are too few for examples of " +
                      std::to_string(longest) + " tokens, which take " + megabytes(least + DRIFT),
                  "shorter examples, fewer target_modules or a smaller r need less");
}

void return_freed_memory() {
#ifdef __GLIBC__
    mallopt(M_ARENA_MAX, 1);
    mallopt(M_MMAP_THRESHOLD, 256 << 10);
    malloc_trim(0);
#endif
}

}  // namespace worker::tune
