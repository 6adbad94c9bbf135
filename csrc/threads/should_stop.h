// How the work of a call learns that it is to end early, as Ctrl-C wants it.
#pragma once

#include <functional>

namespace minifuse {

// Asked now and then on the thread that made the call, and on no other: true ends the work. An empty
// one is never asked.
using ShouldStop = std::function<bool()>;

}  // namespace minifuse
