// Bytes of tokens → text in whole characters, up to a text at which the answer stops.

#pragma once

#include <string>
#include <vector>

namespace worker {

// UTF-8 in pieces that may be split anywhere. What is no UTF-8 becomes U+FFFD, as in Python's
// decoder with `errors="replace"`.
class Utf8 {
  public:
    std::string push(const std::string &bytes);  // the characters that are complete now
    std::string finish();                        // U+FFFD for one that never became so

  private:
    std::string take(bool is_last);
    std::string pending_;
};

// The text of an answer. A piece that may be the beginning of a stop text is held back until it
// is known.
class Stream {
  public:
    explicit Stream(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    std::string push(const std::string &bytes);  // the text that is certain now
    std::string finish();                        // what was held back
    bool stopped() const { return stopped_; }    // a stop text was found: it and the rest are gone

  private:
    std::string ready(bool is_last);

    std::vector<std::string> stops_;
    Utf8 decoder_;
    std::string held_;
    bool stopped_ = false;
};

}  // namespace worker
