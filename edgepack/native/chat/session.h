// A loaded model with its adapters, and the tokens that it has run.

#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "../shared/model_check.h"
#include "../shared/template.h"
#include "../shared/tokens.h"
#include "ggml-cpu.h"
#include "llama.h"

namespace worker {

struct FreeModel {
    void operator()(llama_model *it) const { llama_model_free(it); }
};
struct FreeContext {
    void operator()(llama_context *it) const { llama_free(it); }
};
struct FreeThreads {
    void operator()(ggml_threadpool *it) const { ggml_threadpool_free(it); }
};
using Context = std::unique_ptr<llama_context, FreeContext>;

using Places = std::map<std::string, std::string>;  // adapter → file
using Scales = std::map<std::string, double>;       // adapter → scale
using Cancelled = std::function<bool()>;

// A GGUF adapter in memory.
class Adapter {
  public:
    Adapter(llama_model *model, const GgufFile &header, const std::string &path, std::string mark);
    ~Adapter() { llama_adapter_lora_free(lora_); }
    Adapter(const Adapter &) = delete;
    Adapter &operator=(const Adapter &) = delete;

    llama_adapter_lora *lora() const { return lora_; }
    bool holds_factors() const { return holds_factors_; }
    const std::string mark;  // changes when the file does

  private:
    llama_adapter_lora *lora_;
    bool holds_factors_;
};

class Session {
  public:
    struct Options {
        std::string model;
        std::optional<std::string> factors;
        Places adapters;
        int context;  // tokens; 0: the model's, at most 4096
        int threads;  // 0: `default_threads`
    };
    using Progress = std::function<bool(float share)>;  // false: stop

    // Files that are no model, do not fit together or do not fit into memory are a `Failure`.
    // `before_loading` is called when the headers are found to be good.
    Session(const Options &options, const std::function<void()> &before_loading,
            const Progress &progress);

    // Read the files that are new, keep the others, free those that are not named. If it fails,
    // everything is as before.
    void set_adapters(const Places &places);
    std::vector<std::string> adapters() const;

    // Give adapters their scales; those not named are off. Another choice than before forgets
    // the tokens that were run.
    void scale(const Scales &scales);

    // Go back to what the tokens that were run have in common with others, the last of these
    // excepted: it is run again for its logits. Returns how many stay.
    size_t go_back(const Ids &ids);

    // Run tokens of which the first ones were kept by `go_back`; false if it was cancelled.
    bool run(const Ids &ids, const Cancelled &cancelled);

    // Whether the context has no room for more tokens than so many.
    bool is_full(size_t more) const { return run_.size() + more >= static_cast<size_t>(length_); }

    // Run one more token; false if it was cancelled.
    bool append(llama_token token, const Cancelled &cancelled);

    // Another context for `sequences` independent texts of `length` tokens each, with the factors
    // and without a user's adapters.
    Context texts_context(int sequences, int length) const;

    // The logits of the last token. NaN among them is a `Failure`.
    void check_logits() const;

    llama_context *last() const { return context_.get(); }
    const Tokens &tokens() const { return *tokens_; }
    const Template &chat_template() const { return *template_; }
    const llama_vocab *vocabulary() const { return llama_model_get_vocab(model_.get()); }
    const GgufFile &file() const { return file_; }
    int context() const { return length_; }
    int threads() const { return threads_; }
    std::string name() const;

    int kept_from = 0;  // the first message of the last conversation that was not dropped

  private:
    void load(const std::string &path, const Progress &progress);
    Context open(int tokens, int sequences) const;
    void use(llama_context *context, const Scales &scales) const;
    bool decode(Ids &ids, const Cancelled &cancelled);
    void forget();

    GgufFile file_;
    int length_, threads_;
    std::unique_ptr<llama_model, FreeModel> model_;
    std::unique_ptr<Adapter> factors_;
    std::map<std::string, std::shared_ptr<Adapter>> adapters_;
    std::unique_ptr<Tokens> tokens_;
    std::unique_ptr<Template> template_;
    std::unique_ptr<ggml_threadpool, FreeThreads> pool_;  // else they start anew for every token
    Context context_;
    Scales scales_;
    Ids run_;  // the tokens whose keys and values are in the context
};

}  // namespace worker
