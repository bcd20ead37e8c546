// Timed waits of gRPC's own threads, by a clock that nobody sets.
//
// gRPC 1.51 waits for its timers (deadlines of calls, reconnection, keepalive) through abseil,
// whose waits end at a time of the wall clock. When that is set back by an hour, the one thread
// that waits for the next timer sleeps an hour longer, and with it every timer of the process.
// Abseil has a hook for its waits; this one sleeps as long as was left when the wait began.
#pragma once

#include <cstdint>

namespace oscarkv::rpc {

// Whoever makes channels or servers calls it, so that the hook is part of the program.
void RequireSteadyWaits();

// Timed waits that went through the hook so far, for tests.
uint64_t SteadyWaits();

}  // namespace oscarkv::rpc
