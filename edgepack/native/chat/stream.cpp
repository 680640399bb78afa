#include "stream.h"

#include <algorithm>

namespace worker {
namespace {

constexpr const char *REPLACEMENT = "\xEF\xBF\xBD";

// Of the character that begins with a byte: how many bytes it has (0: none begins so), and what
// its second byte must be. Unicode 15, table 3-7.
struct Lead {
    size_t length;
    unsigned char least = 0x80, most = 0xBF;
};

Lead lead_of(unsigned char byte) {
    if (byte < 0x80) return {1};
    if (byte < 0xC2 || byte > 0xF4) return {0};
    if (byte < 0xE0) return {2};
    if (byte == 0xE0) return {3, 0xA0, 0xBF};
    if (byte == 0xED) return {3, 0x80, 0x9F};
    if (byte < 0xF0) return {3};
    if (byte == 0xF0) return {4, 0x90, 0xBF};
    if (byte == 0xF4) return {4, 0x80, 0x8F};
    return {4};
}

// How many bytes from the start are the beginning of a character.
size_t valid_bytes(const std::string &text, size_t at, const Lead &lead) {
    size_t count = 1;
    while (count < lead.length && at + count < text.size()) {
        const auto byte = static_cast<unsigned char>(text[at + count]);
        const Lead expected = count == 1 ? lead : Lead{0};
        if (byte < expected.least || byte > expected.most) break;
        ++count;
    }
    return count;
}

}  // namespace

std::string Utf8::push(const std::string &bytes) {
    pending_ += bytes;
    return take(false);
}

std::string Utf8::finish() { return take(true); }

std::string Utf8::take(bool is_last) {
    std::string found;
    size_t at = 0;
    while (at < pending_.size()) {
        const Lead lead = lead_of(static_cast<unsigned char>(pending_[at]));
        const size_t count = valid_bytes(pending_, at, lead);
        if (count == lead.length) {
            found.append(pending_, at, count);
        } else if (lead.length && at + count == pending_.size() && !is_last) {
            break;  // more of it may come
        } else {
            found += REPLACEMENT;
        }
        at += count;
    }
    pending_.erase(0, at);
    return found;
}

std::string Stream::push(const std::string &bytes) {
    if (stopped_) return "";
    held_ += decoder_.push(bytes);
    return ready(false);
}

std::string Stream::finish() {
    if (stopped_) return "";
    held_ += decoder_.finish();
    return ready(true);
}

std::string Stream::ready(bool is_last) {
    size_t end = std::string::npos;
    for (const std::string &stop : stops_) end = std::min(end, held_.find(stop));
    if (end != std::string::npos) {
        stopped_ = true;
    } else {
        size_t back = 0;  // the longest end that begins a stop text
        for (const std::string &stop : stops_) {
            for (size_t size = std::min(stop.size() - 1, held_.size()); size > back; --size)
                if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) back = size;
        }
        end = held_.size() - (is_last ? 0 : back);
        // no character is split: what is held back may begin inside one
        while (end > 0 && end < held_.size() && (held_[end] & 0xC0) == 0x80) --end;
    }
    std::string found = held_.substr(0, end);
    held_.erase(0, end);
    return found;
}

}  // namespace worker
