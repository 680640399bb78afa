#include "rows.h"

#include <array>
#include <fstream>

#include "../shared/fields.h"

namespace worker::tune {
namespace {

constexpr const char *HINT =
    "a row is {\"messages\": [{\"role\": …, \"content\": …}]}, {\"prompt\": …, \"completion\": …} "
    "or {\"text\": …}";
constexpr std::streamoff LARGEST_FILE = 256 << 20;
// Keys of a question and of its answer.
constexpr std::array<std::array<const char *, 2>, 3> PAIRS = {
    {{"prompt", "response"}, {"prompt", "completion"}, {"instruction", "output"}}};

std::string text_of(const json &value, const std::string &place, const std::string &key) {
    if (value.is_string()) return value;
    if (!value.is_array()) refuse_row(place, "its " + key + " is no text");
    std::string found;  // parts, as of models that take images too
    for (const json &part : value) {
        if (!part.is_object() || part.value("type", json("text")) != "text" ||
            !part.contains("text") || !part["text"].is_string())
            refuse_row(place, "its " + key + " has a part that is no text");
        found += part["text"].get<std::string>();
    }
    return found;
}

std::vector<Message> messages_of(const json &list, const std::string &place) {
    if (!list.is_array() || list.empty()) refuse_row(place, "its messages are no list");
    std::vector<Message> found;
    for (const json &message : list) {
        if (!message.is_object() || !message.contains("role") || !message["role"].is_string() ||
            !message.contains("content"))
            refuse_row(place, "a message has no role or no content");
        found.push_back({message["role"], text_of(message["content"], place, "content")});
    }
    return found;
}

std::string whole(const std::string &path) {
    std::ifstream file(path, std::ios::binary | std::ios::ate);
    const std::streamoff size = file.tellg();
    if (!file || size < 0) throw Failure("the file of examples cannot be read");
    if (size > LARGEST_FILE) throw Failure("the file of examples has more than 256 MB");
    std::string text(size, '\0');
    file.seekg(0).read(text.data(), size);
    if (!file) throw Failure("the file of examples cannot be read");
    return text;
}

bool ends_with(const std::string &text, const std::string &end) {
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

json parsed(const std::string &text) {
    const auto limit = [](int depth, json::parse_event_t, json &) {
        if (depth > 32) throw Failure("it is nested too deeply");
        return true;
    };
    return json::parse(text, limit);
}

}  // namespace

void refuse_row(const std::string &place, const std::string &why) {
    throw Failure(place + " is no chat (" + why + ")", HINT);
}

Row read_row(const json &row, const std::string &place) {
    if (!row.is_object()) refuse_row(place, "it is not a mapping");
    if (row.contains("text")) {
        if (!row["text"].is_string()) refuse_row(place, "its text is no text");
        return {row["text"], {}};
    }
    if (row.contains("messages")) return {"", messages_of(row["messages"], place)};
    for (const auto &[question, answer] : PAIRS) {
        if (!row.contains(question) || !row.contains(answer)) continue;
        std::string asked = text_of(row[question], place, question);
        const json more = row.value("input", json());
        if (std::string(question) == "instruction" && !more.is_null()) {
            if (!more.is_string()) refuse_row(place, "its input is no text");
            if (more != "") asked += "\n\n" + more.get<std::string>();
        }
        return {"", {{"user", asked}, {"assistant", text_of(row[answer], place, answer)}}};
    }
    refuse_row(place, "it has none of the keys of a row");
}

void for_rows(const json &list, const EachRow &each) {
    size_t number = 0;
    for (const json &row : list) {
        const std::string place = "example " + std::to_string(++number);
        each(place, [&] { return read_row(row, place); });
    }
}

void for_rows_of_file(const std::string &path, const EachRow &each) {
    const std::string text = whole(path);
    if (ends_with(path, ".json")) {
        json list;
        try {
            list = parsed(text);
        } catch (const std::exception &) {
        }
        if (!list.is_array())
            throw Failure("the file of examples is no JSON list of rows",
                          "a file with a row a line is called .jsonl");
        return for_rows(list, each);
    }
    if (!ends_with(path, ".jsonl")) {
        if (text.find_first_not_of(" \t\r\n") != std::string::npos)
            each("the text", [&] { return Row{text, {}}; });
        return;
    }
    size_t number = 0;
    for (size_t start = 0; start < text.size();) {
        const size_t end = std::min(text.find('\n', start), text.size());
        const std::string line = text.substr(start, end - start);
        const std::string place = "line " + std::to_string(++number);
        start = end + 1;
        if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
        each(place, [&] {
            json row;
            try {
                row = parsed(line);
            } catch (const std::exception &) {
                refuse_row(place, "it is no JSON");
            }
            return read_row(row, place);
        });
    }
}

}  // namespace worker::tune
