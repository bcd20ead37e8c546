// TLS of the HTTP server: the context that new connections get, and a socket with or without it.
#pragma once

#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/ssl.hpp>
#include <boost/asio/write.hpp>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "common/auth/security_options.h"
#include "common/auth/watched_file.h"

namespace oscarkv {

using TlsContext = boost::asio::ssl::context;

// TLS 1.2 or later, no renegotiation, no resumption: a certificate is looked at in every handshake,
// so that a replaced authority holds from the next connection on. Thread-compatible.
class TlsContexts {
 public:
  // kInvalidArgument: as CheckSecurityOptions.
  static absl::StatusOr<std::unique_ptr<TlsContexts>> Create(const auth::SecurityOptions& options,
                                                             const Clock* clock);
  // For the next handshake. Looks at the files at most once a second; files that are no good, or do
  // not belong together yet, are logged and change nothing.
  std::shared_ptr<TlsContext> Current();

 private:
  TlsContexts(const auth::SecurityOptions& options, const Clock* clock);
  absl::StatusOr<std::shared_ptr<TlsContext>> Load();

  const auth::SecurityOptions options_;
  auth::WatchedFile cert_, key_, ca_;
  std::shared_ptr<TlsContext> current_;
};

// For one thread. Handlers are called with boost::system::error_code (and the bytes).
class TlsStream {
 public:
  TlsStream(boost::asio::ip::tcp::socket socket, std::shared_ptr<TlsContext> context)
      : socket_(std::move(socket)), context_(std::move(context)) {
    if (context_ != nullptr) tls_.emplace(socket_, *context_);
  }
  TlsStream(const TlsStream&) = delete;
  TlsStream& operator=(const TlsStream&) = delete;

  bool secure() const { return tls_.has_value(); }
  boost::asio::ip::tcp::socket& socket() { return socket_; }
  // Of the peer's verified certificate; none before the handshake, or without one.
  std::vector<std::string> PeerNames();

  template <typename Handler>
  void Handshake(Handler handler) {
    tls_->async_handshake(boost::asio::ssl::stream_base::server, std::move(handler));
  }
  template <typename Buffer, typename Handler>
  void ReadSome(const Buffer& buffer, Handler handler) {
    if (secure()) return tls_->async_read_some(buffer, std::move(handler));
    socket_.async_read_some(buffer, std::move(handler));
  }
  // All of the buffer.
  template <typename Buffer, typename Handler>
  void Write(const Buffer& buffer, Handler handler) {
    if (secure()) return boost::asio::async_write(*tls_, buffer, std::move(handler));
    boost::asio::async_write(socket_, buffer, std::move(handler));
  }
  // Tells the peer that nothing more comes. `owner` is kept until that is sent; what the peer still
  // says can be read meanwhile.
  void EndWriting(std::shared_ptr<void> owner) {
    boost::system::error_code ec;
    if (!secure()) {
      socket_.shutdown(boost::asio::ip::tcp::socket::shutdown_send, ec);
      return;
    }
    tls_->async_shutdown([owner = std::move(owner)](boost::system::error_code) {});
  }

 private:
  boost::asio::ip::tcp::socket socket_;
  const std::shared_ptr<TlsContext> context_;
  std::optional<boost::asio::ssl::stream<boost::asio::ip::tcp::socket&>> tls_;
};

}  // namespace oscarkv
