// Who may connect to a node's memory over the active-message lane, and what each may touch there:
// asked of whoever owns the memory, at each connection and each access. So nothing has to be signed
// or to expire: what the owner no longer grants is refused from then on. One-sided lanes ask
// nobody.
#pragma once

#include <cstdint>

namespace oscarkv {

// Thread-safe. Called on the transport's progress thread: at most short locks.
class AccessGate {
 public:
  virtual ~AccessGate() = default;
  // Whether the subject (of Transport::AddressFor) may still be connected. Once false it stays so.
  virtual bool Welcome(uint64_t subject) = 0;
  // Whether it may now read, resp. write, these bytes of the exported memory.
  virtual bool Allowed(uint64_t subject, bool write, uint64_t offset, uint64_t length) = 0;
};

}  // namespace oscarkv
