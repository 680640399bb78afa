// The process that renders a chat template: it can be ended when the template does not end.

#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "template.h"

namespace worker {

class Renderer {
  public:
    enum class Kind { rendered, refused, failed };

    struct Answer {
        Kind kind;
        std::vector<Part> parts;
        std::string reason;  // if not rendered
    };

    // Of a template, and the variables that it reads besides messages.
    Renderer(std::string source, json names);
    ~Renderer();
    Renderer(const Renderer &) = delete;
    Renderer &operator=(const Renderer &) = delete;

    // The process is started at the first call, and again after it was ended.
    Answer ask(const std::vector<Message> &messages, bool add_generation_prompt);

  private:
    void start();
    void stop();

    const std::string source_;
    const json names_;
    pid_t child_ = -1;
    int to_ = -1, from_ = -1;
};

}  // namespace worker
