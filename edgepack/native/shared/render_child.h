// What the process that renders a chat template does.

#pragma once

#include <string>

#include "worker.h"

namespace worker {

constexpr int TEMPLATE_SECONDS = 5;  // of processor time, for one rendering

// Answer requests from `in` on `out` until `in` ends. This process gets limits, so that a template
// can neither take all memory nor run without end: the system then ends it.
//
// A request is "1" if an answer starts, else "0", then role and content of every message. An
// answer is "rendered", then "1" for what was typed, else "0", and the text of every part; or
// "refused" (by the template, on purpose) or "failed", and the reason.
[[noreturn]] void render_for(int in, int out, const std::string &source, const json &names);

}  // namespace worker
