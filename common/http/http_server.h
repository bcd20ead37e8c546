// An HTTP/1.1 server, of the gateway's API and of every role's /metrics: bounded in all that a
// client can make it hold, and one thread for all connections. Knows nothing of what it serves.
//
// Boost.Beast parses and Boost.Asio waits; no file outside of common/http includes them (they take
// long to compile). Chosen over civetweb, which prometheus-cpp brings along, because that holds a
// thread for every connection (a few hundred streams, or clients that send a byte a second, would
// be as many threads), and because Debian's build of it finds OpenSSL by names that only its
// development package has.
//
// With a certificate in the settings every connection is TLS; who says something else is closed.
//
// What a client gets for going beyond a limit: 431 for the headers, 413 for the body, 503 for
// connections and for bodies that are too many at once, 408 or a closed connection for slowness.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "common/auth/security_options.h"
#include "common/clock.h"

namespace oscarkv {

struct HttpLimits {
  size_t max_connections = 1024;
  size_t max_header_bytes = 16 << 10;
  size_t max_body_bytes = 4 << 20;
  size_t max_buffered_body_bytes = 256 << 20;  // of all connections together
  size_t max_unsent_bytes = 4 << 20;           // of one answer; a client this far behind is left
  Duration header_timeout = std::chrono::seconds(10);  // from the first byte to the last header;
                                                       // also for TLS's handshake
  Duration body_timeout = std::chrono::seconds(60);
  Duration idle_timeout = std::chrono::seconds(75);   // between two requests of a connection
  Duration write_timeout = std::chrono::seconds(30);  // for the next 64 KiB of an answer
};

struct HttpServerSettings {
  std::string listen;  // "HOST:PORT"; port 0 picks a free one
  std::string thread_name = "http";
  HttpLimits limits;
  // Its certificate (none: plain text) and whether clients need one; read again when replaced, for
  // new connections. Its auth file is the handler's business.
  auth::SecurityOptions security;
};

struct HttpRequest {
  std::string method;
  std::string path;   // as sent, without the query: not decoded, as no path of ours needs it
  std::string query;  // what follows '?'
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  std::string peer;                            // address:port
  std::vector<std::string> certificate_names;  // that a verified client certificate proves

  // The first header of that name, without regard to case; empty when there is none.
  absl::string_view header(absl::string_view name) const;
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::string body;
  std::vector<std::pair<std::string, std::string>> headers;  // besides those of every answer
};

// A request and where its answer goes. Thread-safe; no method blocks. The answer is either one
// Send, or BeginStream, Writes and one End. What comes after the answer's end, or after the client
// went, is dropped.
class HttpExchange {
 public:
  virtual ~HttpExchange() = default;
  virtual const HttpRequest& request() const = 0;
  virtual void Send(HttpResponse response) = 0;
  virtual void BeginStream(HttpResponse head) = 0;  // its body is the first piece
  virtual void Write(std::string piece) = 0;
  // `complete`: false breaks the connection, so that the client sees that something is missing.
  virtual void End(bool complete) = 0;
  // Called once, on the server's thread, when the client goes before the answer's end; at once when
  // it has gone already. Dropped when the answer ends. Must not block.
  virtual void OnGone(std::function<void()> gone) = 0;
};

// Called on the server's thread: must not block.
using HttpHandler = std::function<void(std::shared_ptr<HttpExchange>)>;

// What the server counts, for metrics. Called on its thread.
struct HttpEvents {
  std::function<void(int open)> connections;  // how many are open
  // tls, header, body, connections, memory, slow, slow_reader, malformed
  std::function<void(absl::string_view reason)> refused;
};

class HttpServer {
 public:
  // kInvalidArgument: not such an address, or security options that are no good; kUnavailable: the
  // address cannot be bound.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(const HttpServerSettings& settings,
                                                           HttpHandler handler, HttpEvents events);
  // Exchanges must not be used afterwards.
  ~HttpServer();

  int port() const;
  // No new connections; those that wait for a request are closed, answers under way may be written
  // until `drain` is over. Blocks; the handler is not called afterwards. May be called again.
  void Stop(Duration drain);

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// The reason phrase of a status code.
const char* HttpReason(int status);

}  // namespace oscarkv
