// `inspect`: what a GGUF file is, by its header.

#include <memory>
#include <string>

#include "chat.h"
#include "llama.h"

namespace worker {
namespace {

constexpr const char *DIGEST = "edgepack.base.digest";

// Whether llama.cpp knows the architecture and the vocabulary; the weights are left out.
void check_known(const GgufFile &file, const std::string &path) {
    auto params = llama_model_default_params();
    params.vocab_only = true;
    const std::unique_ptr<llama_model, FreeModel> model(
        llama_model_load_from_file(path.c_str(), params));
    if (!model)
        throw Failure("llama.cpp cannot run this model, of the architecture " +
                          shorten(file.architecture(), 60),
                      "choose a model of another family");
}

bool has_template(const GgufFile &file) {
    for (const std::string &key : file.keys())
        if (key.rfind("tokenizer.chat_template", 0) == 0) return true;
    return false;
}

}  // namespace

Last inspect(const Request &request) {
    const std::string path = Fields(request.fields).file("file");
    const GgufFile file(path, "the file");
    const Kind kind = kind_of(file);
    if (kind == Kind::model) {
        check_model(file);
        check_known(file, path);
    }
    const auto digest = file.text(DIGEST);
    return {"inspected",
            {{"kind", KIND_NAMES[static_cast<int>(kind)]},
             {"name", shorten(file.text("general.name").value_or(""))},
             {"architecture", file.architecture()},
             {"parameters", file.parameters()},
             {"bytes", file.bytes()},
             {"context_length", file.count("context_length")},
             {"chat_template", has_template(file)},
             {"base_digest", digest ? json(*digest) : json(nullptr)}}};
}

}  // namespace worker
