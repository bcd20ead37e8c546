#include "transport/liveness.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

constexpr size_t kMaxClients = 4096;

socklen_t MakeName(uint64_t instance, sockaddr_un* name) {
  *name = {};
  name->sun_family = AF_UNIX;
  const std::string text = absl::StrCat("oscarkv-", absl::Hex(instance, absl::kZeroPad16));
  std::memcpy(name->sun_path + 1, text.data(), text.size());  // a leading NUL: abstract
  return static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + text.size());
}

absl::Status SocketError(const char* what) {
  return absl::UnavailableError(absl::StrCat(what, ": ", std::strerror(errno)));
}

bool SameUser(int fd) {
  ucred credentials{};
  socklen_t size = sizeof(credentials);
  return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) == 0 &&
         credentials.uid == geteuid();
}

}  // namespace

absl::StatusOr<std::unique_ptr<LivenessListener>> LivenessListener::Create(uint64_t instance) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un name;
  const socklen_t size = MakeName(instance, &name);
  if (!fd.ok() || bind(fd.get(), reinterpret_cast<sockaddr*>(&name), size) != 0 ||
      listen(fd.get(), SOMAXCONN) != 0) {
    return SocketError("cannot listen on the liveness socket");
  }
  return std::unique_ptr<LivenessListener>(new LivenessListener(std::move(fd)));
}

void LivenessListener::Start(ProgressThread* thread) {
  thread_ = thread;
  thread_->Watch(fd_.get(), [this] { Accept(); });
}

void LivenessListener::Stop() {
  if (thread_ != nullptr) {
    for (const auto& [fd, owner] : clients_) thread_->Unwatch(fd);
    thread_->Unwatch(fd_.get());
  }
  clients_.clear();
  fd_.reset();
}

void LivenessListener::Accept() {
  for (;;) {
    UniqueFd client(accept4(fd_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
    if (!client.ok()) return;
    // Nobody else has business with our memory; and nobody may exhaust our file descriptors.
    if (!SameUser(client.get()) || clients_.size() >= kMaxClients) continue;
    const int fd = client.get();
    // Clients never send: whatever makes it readable ends it.
    thread_->Watch(fd, [this, fd] {
      thread_->Unwatch(fd);
      clients_.erase(fd);
    });
    clients_.emplace(fd, std::move(client));
  }
}

absl::StatusOr<UniqueFd> ConnectLiveness(uint64_t instance) {
  UniqueFd fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  sockaddr_un name;
  const socklen_t size = MakeName(instance, &name);
  if (!fd.ok() || connect(fd.get(), reinterpret_cast<sockaddr*>(&name), size) != 0) {
    return SocketError("the peer's liveness socket cannot be reached");
  }
  if (!SameUser(fd.get()))
    return absl::UnavailableError("the peer's liveness socket belongs to another user");
  return fd;
}

bool HungUp(int fd) {
  char byte;
  const ssize_t n = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  return n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

}  // namespace oscarkv
