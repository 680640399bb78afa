// Rows of a person's examples: a text, or a conversation in one of the usual layouts
// (edgepack/calibration/rows.py).

#pragma once

#include <functional>
#include <string>
#include <vector>

#include "../shared/template.h"
#include "../shared/worker.h"

namespace worker::tune {

struct Row {
    std::string text;               // or
    std::vector<Message> messages;  // if there are any
};

// A row that JSON was read from. `place` names it in errors: "example 3".
Row read_row(const json &row, const std::string &place);

// The error of a row: what is wrong with it.
[[noreturn]] void refuse_row(const std::string &place, const std::string &why);

// Calls `each` for every row of a list, or of a file: .jsonl, .json, or else a text. What is wrong
// with a row is thrown by the function that `each` gets.
using ReadRow = std::function<Row()>;
using EachRow = std::function<void(const std::string &place, const ReadRow &read)>;
void for_rows(const json &list, const EachRow &each);
void for_rows_of_file(const std::string &path, const EachRow &each);

}  // namespace worker::tune
