// The job `model`: what llama-bench does, and adapters besides.

#include <algorithm>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "bench.h"
#include "llama.h"

namespace worker {
namespace {

constexpr int BATCH = 2048, MICRO_BATCH = 512;  // llama.cpp's and llama-bench's defaults
constexpr int WARM_UP_PROMPT = 32, WARM_UP_DECODE = 2;

struct Case {
    std::string kind;
    int tokens, depth, batch;
};

class Session {
  public:
    explicit Session(const json &job) : threads_(job.at("threads")) {
        const std::string path = job.at("model");
        auto params = llama_model_default_params();
        params.load_mode = LLAMA_LOAD_MODE_MMAP;
        model_.reset(
            checked(llama_model_load_from_file(path.c_str(), params), "cannot load " + path));
        using Adapter = std::pair<std::string, float>;
        for (const auto &[place, scale] : job.at("adapters").get<std::vector<Adapter>>()) {
            adapters_.push_back(checked(llama_adapter_lora_init(model_.get(), place.c_str()),
                                        "cannot use the adapter " + place));
            scales_.push_back(scale);
        }
        vocabulary_ = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
        batch_ = llama_batch_init(BATCH, 0, 1);
    }

    ~Session() { llama_batch_free(batch_); }
    Session(const Session &) = delete;
    Session &operator=(const Session &) = delete;

    // Seconds of a case, in a new context that has just the room for it.
    double time(const Case &it) {
        start((it.depth + it.tokens) * it.batch, it.batch);
        if (it.depth) run(it.depth, it.batch);
        const Clock clock;
        if (it.kind == "prompt") {
            run(it.tokens, it.batch);
        } else {
            for (int i = 0; i < it.tokens; ++i) run(1, it.batch);
        }
        return clock.seconds();
    }

  private:
    void start(int tokens, int sequences) {
        context_.reset();
        auto params = llama_context_default_params();
        params.n_ctx = tokens;
        params.n_seq_max = sequences;
        params.kv_unified = sequences > 1;
        params.n_batch = BATCH;
        params.n_ubatch = MICRO_BATCH;
        params.n_threads = params.n_threads_batch = threads_;
        params.no_perf = true;
        context_.reset(
            checked(llama_init_from_model(model_.get(), params),
                    "cannot allocate a context of " + std::to_string(tokens) + " tokens"));
        checked(llama_set_adapters_lora(context_.get(), adapters_.data(), adapters_.size(),
                                        scales_.data()) == 0,
                "cannot use the adapters");
        position_ = 0;
    }

    // Run random tokens after those before, in each sequence; logits of the last ones.
    void run(int length, int sequences) {
        const int columns = std::max(1, BATCH / sequences);
        for (int first = 0; first < length; first += columns) {
            fill(std::min(columns, length - first), sequences, first + columns >= length);
            checked(llama_decode(context_.get(), batch_) == 0, "llama.cpp cannot run the model");
        }
        llama_synchronize(context_.get());
    }

    void fill(int columns, int sequences, bool has_logits) {
        batch_.n_tokens = 0;
        for (int sequence = 0; sequence < sequences; ++sequence) {
            for (int i = 0; i < columns; ++i) {
                const int n = batch_.n_tokens++;
                batch_.token[n] = static_cast<llama_token>(random_() % vocabulary_);
                batch_.pos[n] = position_ + i;
                batch_.n_seq_id[n] = 1;
                batch_.seq_id[n][0] = sequence;
                batch_.logits[n] = has_logits && i + 1 == columns;
            }
        }
        position_ += columns;
    }

    struct Free {
        void operator()(llama_model *model) const { llama_model_free(model); }
        void operator()(llama_context *context) const { llama_free(context); }
    };

    int threads_, vocabulary_ = 0, position_ = 0;
    std::unique_ptr<llama_model, Free> model_;  // frees its adapters, too
    std::unique_ptr<llama_context, Free> context_;
    std::vector<llama_adapter_lora *> adapters_;
    std::vector<float> scales_;
    llama_batch batch_{};
    std::minstd_rand random_;
};

}  // namespace

void run_model(const json &job) {
    const Clock clock;
    Session session(job);
    say({{"event", "loaded"}, {"seconds", clock.seconds()}, {"memory", memory()}});
    std::vector<std::string> warm;
    int index = 0;
    for (const json &it : job.at("cases")) {
        const Case timed{it.at("kind"), it.at("tokens"), it.at("depth"), it.at("batch")};
        checked(timed.batch >= 1 && timed.batch <= BATCH, "a batch has 1 to 2048 sequences");
        if (std::find(warm.begin(), warm.end(), timed.kind) == warm.end()) {
            warm.push_back(timed.kind);
            const int few = timed.kind == "prompt" ? WARM_UP_PROMPT : WARM_UP_DECODE;
            session.time({timed.kind, std::min(timed.tokens, few), 0, timed.batch});
        }
        const double seconds = session.time(timed);
        say({{"event", "case"}, {"index", index++}, {"seconds", seconds}, {"memory", memory()}});
    }
    say_ended();
}

}  // namespace worker
