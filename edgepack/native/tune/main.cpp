// edgepack-tune: trains adapters on a packed model. Requests and events are docs/workers.md.

#include <csignal>

#include "../shared/lines.h"
#include "training.h"

namespace {

worker::Last handle(const worker::Request &request) {
    const std::string &action = request.action;
    if (action != "plan" && action != "train" && action != "gradient")
        worker::refuse_action(request);
    worker::tune::Training training(request);
    if (action == "plan") return training.plan();
    return action == "train" ? training.train() : training.gradient();
}

}  // namespace

int main() {
    worker::watch_for_failures();
    signal(SIGXFSZ, SIG_IGN);  // a file that may not grow is an error of `write`
    worker::tune::return_freed_memory();
    worker::serve("tune", handle);
    return 0;
}
