// What edgepack-chat can do, see docs/workers.md.

#pragma once

#include <memory>

#include "../shared/lines.h"
#include "session.h"

namespace worker {

Last inspect(const Request &request);
Last chat(Session &session, const Request &request);
Last render(Session &session, const Request &request);
Last write_chats(Session &session, const Request &request);

}  // namespace worker
