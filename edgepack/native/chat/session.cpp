#include "session.h"

#include <sys/stat.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>
#include <utility>

#include "../shared/fields.h"
#include "../shared/threads.h"

namespace worker {
namespace {

constexpr int MICRO_BATCH = 512;    // llama.cpp's default
constexpr int MOST_CONTEXT = 4096;  // if nobody asks for more: keys and values take memory
constexpr int LEAST_CONTEXT = 16;
constexpr const char *SMALLER = "close other apps, or choose a smaller model or context";

std::string megabytes(uint64_t bytes) { return std::to_string((bytes + 999999) / 1000000) + " MB"; }

// Bytes that can be used without swapping; nothing where the system does not tell.
std::optional<uint64_t> available_memory() {
    std::ifstream file("/proc/meminfo");
    for (std::string line; std::getline(file, line);) {
        if (line.rfind("MemAvailable:", 0) == 0)
            return std::stoull(line.substr(strlen("MemAvailable:"))) << 10;
    }
    return std::nullopt;
}

void check_memory(const GgufFile &model, uint64_t adapters, int context) {
    const uint64_t needed = model.bytes() + adapters + cache_bytes(model) * context;
    const auto free = available_memory();
    if (free && needed > *free)
        throw Failure("the model needs " + megabytes(needed) + " of memory for its weights and " +
                          std::to_string(context) + " tokens, and " + megabytes(*free) +
                          " are free",
                      SMALLER);
}

// What distinguishes a file from another one that took its place.
std::string mark_of(const std::string &path) {
    struct stat about {};
    if (stat(path.c_str(), &about) != 0) return "";
    std::ostringstream text;
    text << path << ' ' << about.st_dev << ' ' << about.st_ino << ' ' << about.st_size << ' '
         << about.st_mtim.tv_sec << ' ' << about.st_mtim.tv_nsec;
    return text.str();
}

// The error of llama.cpp that came first: without the function's name, and words that are paths.
std::string reason() {
    std::string text = first_error();
    for (const char *before : {"error loading model: ", "failed to apply lora adapter: ", ": "}) {
        const size_t at = text.find(before);
        if (at == std::string::npos) continue;
        text = "(" + text.substr(at + strlen(before));
        break;
    }
    std::istringstream words(text);
    std::string found;
    for (std::string word; words >> word;)
        if (word.find('/') == std::string::npos) found += " " + word;
    return shorten(found, 160);
}

int context_of(const GgufFile &file, int asked) {
    const auto trained = static_cast<int>(
        std::clamp<int64_t>(file.count("context_length"), 0, 1 << 20));
    const int most = trained > 0 ? trained : MOST_CONTEXT;
    return std::max(LEAST_CONTEXT, std::min(most, asked > 0 ? asked : MOST_CONTEXT));
}

// llama.cpp uses AMX wherever it was compiled for it, and where the system forbids it the process
// dies. Weights are repacked for everything else.
bool may_repack() { return !strstr(llama_print_system_info(), "AMX_INT8 = 1"); }

bool call(void *data) { return (*static_cast<const Cancelled *>(data))(); }

}  // namespace

Adapter::Adapter(llama_model *model, const GgufFile &header, const std::string &path,
                 std::string mark)
    : mark(std::move(mark)),
      lora_(llama_adapter_lora_init(model, path.c_str())),
      holds_factors_(worker::holds_factors(header)) {
    if (!lora_) throw Failure(header.what() + " cannot be used" + reason());
}

Session::Session(const Options &options, const std::function<void()> &before_loading,
                 const Progress &progress)
    : file_(options.model, "the model"),
      length_(context_of(file_, options.context)),
      threads_(options.threads > 0 ? options.threads : default_threads()) {
    check_model(file_);
    uint64_t bytes = 0;
    std::optional<GgufFile> factors;
    if (options.factors) {
        factors.emplace(*options.factors, "the file of factors");
        check_adapter(*factors, file_);
        bytes = factors->bytes();
    }
    before_loading();
    check_memory(file_, bytes, length_);
    load(options.model, progress);
    if (factors)
        factors_ = std::make_unique<Adapter>(model_.get(), *factors, *options.factors, "");
    if (threads_ > 1) {
        auto params = ggml_threadpool_params_default(threads_);
        pool_.reset(ggml_threadpool_new(&params));
    }
    tokens_ = std::make_unique<Tokens>(model_.get());
    template_ = std::make_unique<Template>(model_.get());
    set_adapters(options.adapters);
}

void Session::load(const std::string &path, const Progress &progress) {
    auto params = llama_model_default_params();
    params.load_mode = LLAMA_LOAD_MODE_MMAP;
    params.use_extra_bufts = may_repack();
    params.progress_callback = [](float share, void *data) {
        return (*static_cast<const Progress *>(data))(share);
    };
    params.progress_callback_user_data = const_cast<Progress *>(&progress);
    model_.reset(llama_model_load_from_file(path.c_str(), params));
    if (!model_) throw Failure("llama.cpp cannot load the model" + reason());
    if (!llama_model_has_decoder(model_.get()) || llama_model_has_encoder(model_.get()) ||
        llama_model_is_diffusion(model_.get()))
        throw Failure("the model is of a kind that does not write one token after another",
                      "choose a model for chat");
}

std::string Session::name() const {
    const auto name = file_.text("general.name");
    return shorten(name && !name->empty() ? *name : file_.architecture());
}

void Session::set_adapters(const Places &places) {
    std::map<std::string, std::shared_ptr<Adapter>> found;
    for (const auto &[name, path] : places) {
        const std::string mark = mark_of(path);
        const auto known = adapters_.find(name);
        if (known != adapters_.end() && known->second->mark == mark) {
            found[name] = known->second;
            continue;
        }
        const GgufFile header(path, "the adapter " + shorten(name, 60));
        check_adapter(header, file_);
        found[name] = std::make_shared<Adapter>(model_.get(), header, path, mark);
    }
    if (context_ && found == adapters_) return;
    context_.reset();  // it holds adapters, and its buffers have room for those only
    adapters_ = std::move(found);
    context_ = open(length_, 1);
    scales_.clear();
    use(context_.get(), scales_);
    run_.clear();
}

std::vector<std::string> Session::adapters() const {
    std::vector<std::string> names;
    for (const auto &[name, adapter] : adapters_) names.push_back(name);
    return names;
}

Context Session::open(int tokens, int sequences) const {
    auto params = llama_context_default_params();
    params.n_ctx = static_cast<uint32_t>(tokens);
    params.n_batch = params.n_ubatch = static_cast<uint32_t>(std::min(tokens, MICRO_BATCH));
    params.n_seq_max = static_cast<uint32_t>(sequences);
    params.n_outputs_max = params.n_seq_max;  // logits of a token take as much as the vocabulary
    params.n_threads = params.n_threads_batch = threads_;
    params.swa_full = false;
    params.no_perf = true;
    Context context(llama_init_from_model(model_.get(), params));
    if (!context)
        throw Failure("there is no memory for a context of " + std::to_string(tokens) + " tokens" +
                          reason(),
                      SMALLER);
    if (pool_) llama_attach_threadpool(context.get(), pool_.get(), nullptr);
    return context;
}

Context Session::texts_context(int sequences, int length) const {
    Context context = open(sequences * length, sequences);
    use(context.get(), {});
    return context;
}

void Session::use(llama_context *context, const Scales &scales) const {
    std::vector<llama_adapter_lora *> loras;
    std::vector<float> values;
    double factors = 1.0;  // L·R + s·ΔW = (1 − s)·L·R + s·(L·R + ΔW)
    for (const auto &[name, scale] : scales) {
        const Adapter &adapter = *adapters_.at(name);
        if (adapter.holds_factors()) factors -= scale;
        loras.push_back(adapter.lora());
        values.push_back(static_cast<float>(scale));
    }
    if (factors_ && factors != 0.0) {
        loras.push_back(factors_->lora());
        values.push_back(static_cast<float>(factors));
    }
    if (llama_set_adapters_lora(context, loras.data(), loras.size(), values.data()) != 0)
        throw Failure("llama.cpp cannot use the adapters" + reason());
}

void Session::scale(const Scales &scales) {
    Scales on;
    for (const auto &[name, scale] : scales) {
        if (!adapters_.count(name))
            throw Failure("there is no adapter " + shorten(name, 60), "load it first");
        if (scale != 0.0) on[name] = scale;
    }
    if (on == scales_) return;
    use(context_.get(), on);
    scales_ = on;
    forget();
}

void Session::forget() {
    llama_memory_clear(llama_get_memory(context_.get()), false);
    run_.clear();
}

bool Session::decode(Ids &ids, const Cancelled &cancelled) {
    if (cancelled()) return false;
    llama_set_abort_callback(context_.get(), call, const_cast<Cancelled *>(&cancelled));
    const auto batch = llama_batch_get_one(ids.data(), static_cast<int32_t>(ids.size()));
    const int32_t code = llama_decode(context_.get(), batch);
    llama_set_abort_callback(context_.get(), nullptr, nullptr);
    if (code == 0) {
        run_.insert(run_.end(), ids.begin(), ids.end());
        return true;
    }
    auto *memory = llama_get_memory(context_.get());
    if (!llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(run_.size()), -1)) forget();
    if (code == 2) return false;
    forget();
    throw Failure("llama.cpp cannot run the model" + reason());
}

size_t Session::go_back(const Ids &ids) {
    const auto most = static_cast<std::ptrdiff_t>(std::min(run_.size(), ids.size() - 1));
    auto common = static_cast<size_t>(
        std::mismatch(run_.begin(), run_.begin() + most, ids.begin()).first - run_.begin());
    if (common == run_.size()) return common;
    auto *memory = llama_get_memory(context_.get());
    const auto end = static_cast<llama_pos>(common);
    const llama_pos window = llama_model_n_swa(model_.get());
    const bool has_past =
        window <= 0 || llama_memory_seq_pos_min(memory, 0) <= std::max(0, end - window);
    if (common == 0 || !has_past || !llama_memory_seq_rm(memory, 0, end, -1)) {
        forget();  // some kinds of memory cannot go back
        return 0;
    }
    run_.resize(common);
    return common;
}

bool Session::run(const Ids &ids, const Cancelled &cancelled) {
    while (run_.size() < ids.size()) {
        Ids next(ids.begin() + static_cast<std::ptrdiff_t>(run_.size()), ids.end());
        next.resize(std::min<size_t>(next.size(), MICRO_BATCH));
        if (!decode(next, cancelled)) return false;
    }
    return true;
}

bool Session::append(llama_token token, const Cancelled &cancelled) {
    Ids ids{token};
    return decode(ids, cancelled);
}

void Session::check_logits() const {
    const float *logits = llama_get_logits_ith(context_.get(), -1);
    const bool damaged = !logits || std::any_of(logits, logits + tokens_->size(),
                                                [](float value) { return std::isnan(value); });
    if (damaged)
        throw Failure("the model predicts NaN", "its weights, or the factors or adapters beside "
                                                "them, are damaged");
}

}  // namespace worker
