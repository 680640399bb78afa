// edgepack-tune: trains adapters on a packed model. Requests and events are docs/workers.md.

#include "../shared/lines.h"
#include "training.h"

int main() {
    using namespace worker;
    watch_for_failures();
    tune::return_freed_memory();
    serve("tune", [](const Request &request) {
        if (request.action != "plan" && request.action != "train" && request.action != "gradient")
            refuse_action(request);
        tune::Training training(request);
        if (request.action == "plan")
            training.plan();
        else if (request.action == "train")
            training.train();
        else
            training.gradient();
    });
    return 0;
}
