// The chat template of a model: messages as the text that it was trained on.
//
// llama.cpp's Jinja engine renders it, with the variables that edgepack's Python gives to Jinja
// (edgepack/checkpoint/templates.py). A template is a program by the model's authors, so that it
// runs in another process, with limits of time, memory and length.

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llama.h"
#include "worker.h"

namespace worker {

class Failure;
class Renderer;

struct Message {
    std::string role, content;
};

// A piece of a rendered text. What was `typed` is a message's: control tokens in it are text.
struct Part {
    std::string text;
    bool typed;
};

// The text of all parts.
std::string joined(const std::vector<Part> &parts);

// The messages of a request's field: a list of objects with `role` and `content`, both texts.
std::vector<Message> read_messages(const json &list);

class Template {
  public:
    // Of a loaded model; its weights may have been left out (`vocab_only`).
    explicit Template(const llama_model *model);
    // Of a text, with the variables that it reads besides messages.
    Template(std::string source, json names);
    ~Template();

    // Whether the model has one. Without it messages are rendered with empty lines between.
    bool exists() const;

    // The messages; with `add_generation_prompt` up to the start of the answer. `Failure` if the
    // template refuses them, has an error, or exceeds a limit. Not for several threads at once.
    std::vector<Part> render(const std::vector<Message> &messages,
                             bool add_generation_prompt) const;

  private:
    std::string source_;
    json names_;
    std::unique_ptr<Failure> problem_;  // of several templates, none is for chats
    mutable std::unique_ptr<Renderer> renderer_;
};

}  // namespace worker
