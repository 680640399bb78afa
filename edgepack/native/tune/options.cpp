#include "options.h"

namespace worker::tune {
namespace {

constexpr int64_t MAX_STEPS = 1000000, MAX_RANK = 1 << 16, MAX_LENGTH = 1 << 20;
constexpr double TINY = 1e-300;  // bounds that a number must be above

void read_targets(const json &options, Options &into) {
    const auto found = options.find("target_modules");
    if (found == options.end() || found->is_null() || *found == "all-linear") return;
    into.all_linear = false;
    if (found->is_array()) into.target_modules = Fields(options, "options.").texts("target_modules");
    if (into.target_modules.empty())
        throw Failure("options.target_modules is neither all-linear nor a list of names",
                      "for example [\"q_proj\", \"v_proj\"]");
}

}  // namespace

Options Options::read(const Fields &request) {
    Options o;
    const std::string mode = request.text("mode", "stack");
    if (mode != "stack" && mode != "factors")
        throw Failure("there is no mode " + shorten(mode, 40), "use stack or factors");
    o.stack = mode == "stack";
    const json &options = request.object("options");
    const Fields fields(options, "options.");
    o.r = fields.integer("r", o.r, 1, MAX_RANK);
    o.lora_alpha = fields.number("lora_alpha", o.lora_alpha, TINY, MAX_RANK);
    read_targets(options, o);
    o.learning_rate = fields.number("learning_rate", o.learning_rate, TINY, 10);
    o.weight_decay = fields.number("weight_decay", o.weight_decay, 0, 1);
    o.warmup_ratio = fields.number("warmup_ratio", o.warmup_ratio, 0, 0.999999);
    o.clip = fields.number("clip", o.clip, TINY, 1e9);
    o.epochs = fields.integer("epochs", o.epochs, 1, MAX_STEPS);
    if (fields.has("steps")) o.steps = fields.integer("steps", 1, 1, MAX_STEPS);
    o.batch_size = fields.integer("batch_size", o.batch_size, 1, MAX_STEPS);
    o.sequence_length = fields.integer("sequence_length", o.sequence_length, 8, MAX_LENGTH);
    o.replay = fields.number("replay", o.replay, 0, 8);
    o.skip_bad_rows = fields.flag("skip_bad_rows", o.skip_bad_rows);
    o.seed = fields.integer("seed", o.seed, 0, INT64_MAX);
    if (fields.has("memory")) o.memory = fields.integer("memory", 0, 1, int64_t{1} << 60);
    return o;
}

bool Options::targets(const std::string &module) const {
    if (all_linear) return true;
    for (const std::string &name : target_modules) {
        const size_t size = name.size();
        if (module == name) return true;
        if (module.size() > size && module.compare(module.size() - size, size, name) == 0 &&
            module[module.size() - size - 1] == '.')
            return true;
    }
    return false;
}

std::string Options::key() const {
    const json found = {
        stack,        r,    lora_alpha, all_linear,      target_modules, learning_rate,
        weight_decay, clip, epochs,     steps.value_or(0), batch_size,   warmup_ratio,
        replay,       seed, sequence_length,
    };
    return found.dump();
}

}  // namespace worker::tune
