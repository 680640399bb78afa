// edgepack-chat: answers with a packed model. It speaks JSON lines, see docs/workers.md.

#include <cmath>
#include <memory>
#include <string>

#include "chat.h"
#include "llama.h"

namespace worker {
namespace {

constexpr int64_t MOST_CONTEXT = 1 << 20, MOST_THREADS = 256;

Session::Options read_options(const Fields &fields) {
    return {fields.file("model"), fields.optional_file("factors"), fields.files("adapters"),
            static_cast<int>(fields.integer("context", 0, 0, MOST_CONTEXT)),
            static_cast<int>(fields.integer("threads", 0, 0, MOST_THREADS))};
}

void check_cancelled(const Request &request) {
    if (request.cancelled()) throw Failure("loading was cancelled");
}

Last load(std::unique_ptr<Session> &session, const Request &request) {
    const Clock clock;
    const auto options = read_options(Fields(request.fields));
    float said = -1.0F;
    const auto progress = [&](float share) {
        if (share - said >= 0.05F) {
            said = share;
            request.event("progress", {{"share", std::round(share * 100.0F) / 100.0}});
        }
        return !request.cancelled();
    };
    const auto free_last = [&] {
        check_cancelled(request);
        session.reset();
    };
    try {
        session = std::make_unique<Session>(options, free_last, progress);
    } catch (const Failure &) {
        check_cancelled(request);  // which llama.cpp calls a failure
        throw;
    }
    return {"loaded",
            {{"seconds", clock.seconds()},
             {"name", session->name()},
             {"architecture", session->file().architecture()},
             {"context", session->context()},
             {"threads", session->threads()},
             {"chat_template", session->chat_template().exists()},
             {"memory", memory()}}};
}

Last handle(std::unique_ptr<Session> &session, const Request &request) {
    if (request.action == "inspect") return inspect(request);
    if (request.action == "load") return load(session, request);
    const bool known = request.action == "adapters" || request.action == "chat" ||
                       request.action == "render" || request.action == "write";
    if (!known) refuse_action(request);
    if (!session) throw Failure("no model is loaded", "load one first");
    if (request.action == "chat") return chat(*session, request);
    if (request.action == "render") return render(*session, request);
    if (request.action == "write") return write_chats(*session, request);
    session->set_adapters(Fields(request.fields).files("adapters"));
    return {"adapters", {{"names", session->adapters()}}};
}

}  // namespace
}  // namespace worker

int main() {
    worker::watch_for_failures();
    llama_backend_init();
    std::unique_ptr<worker::Session> session;
    worker::serve("chat", [&](const worker::Request &request) {
        return worker::handle(session, request);
    });
    return 0;
}
