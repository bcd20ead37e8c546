// How a connection goes:
//
//   (kHandshake ->) kHeader -> kBody -> kAnswer -> (keep-alive) kIdle -> kHeader ...
//                           \________\________\-> kLinger -> closed
//
// Everything of a connection happens on the server's one thread; exchanges post to it. The parser
// is fed by hand from a buffer, so that the connection decides between headers and body whether it
// wants the body, and so that it can watch for the client's end while an answer is under way: one
// read is always pending, except while the buffer holds as much as a header may.
//
// One timer a connection, set anew with every state; when it fires the connection is closed.
// kAnswer has no time limit of its own (the request's deadline has), only its writes have.
#include "common/http/http_server.h"

#include <pthread.h>

#include <algorithm>
#include <array>
#include <boost/asio.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http.hpp>
#include <optional>
#include <set>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/http/tls_stream.h"
#include "common/log.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace bhttp = boost::beast::http;
using asio::ip::tcp;
using boost::system::error_code;

constexpr size_t kReadBytes = 8 << 10;
constexpr size_t kWriteBytes = 64 << 10;
constexpr size_t kLingerBytes = 1 << 20;  // of a refused request, read and dropped
constexpr Duration kLingerTime = std::chrono::seconds(2);

absl::string_view View(boost::string_view s) {
  return absl::string_view(s.data(), s.size());
}

std::string HttpDate() {
  return absl::FormatTime("%a, %d %b %Y %H:%M:%S GMT", absl::Now(), absl::UTCTimeZone());
}

class Connection;

// What connections share; only for the server's thread.
struct Shared {
  HttpLimits limits;
  HttpHandler handler;
  HttpEvents events;
  asio::io_context io{1};
  std::set<std::shared_ptr<Connection>> connections;
  size_t body_bytes = 0;
  bool stopping = false;
  std::function<void()> all_closed;

  void Refused(absl::string_view reason) {
    if (events.refused) events.refused(reason);
  }
};

// The answer to one request. Outlives its connection, when the handler keeps it.
class Exchange final : public HttpExchange, public std::enable_shared_from_this<Exchange> {
 public:
  Exchange(Shared* shared, std::weak_ptr<Connection> connection, HttpRequest request)
      : shared_(shared), connection_(std::move(connection)), request_(std::move(request)) {}

  const HttpRequest& request() const override { return request_; }
  void Send(HttpResponse response) override;
  void BeginStream(HttpResponse head) override;
  void Write(std::string piece) override;
  void End(bool complete) override;
  void OnGone(std::function<void()> gone) override;

  // The server's thread: the answer is over, complete or not.
  void Over(bool gone);

 private:
  template <typename F>
  void Post(F f);

  Shared* const shared_;
  const std::weak_ptr<Connection> connection_;
  const HttpRequest request_;
  // The server's thread only.
  bool over_ = false, gone_ = false;
  std::function<void()> on_gone_;
};

class Connection final : public std::enable_shared_from_this<Connection> {
 public:
  // tls: null for plain text.
  Connection(Shared* shared, tcp::socket socket, std::shared_ptr<TlsContext> tls)
      : shared_(shared), stream_(std::move(socket), std::move(tls)), timer_(shared->io) {
    error_code ec;
    const tcp::endpoint peer = stream_.socket().remote_endpoint(ec);
    if (!ec) peer_ = absl::StrCat(peer.address().to_string(), ":", peer.port());
    stream_.socket().set_option(tcp::no_delay(true), ec);
  }

  void Start() {
    if (!stream_.secure()) return Begin();
    state_ = State::kHandshake;
    SetTimer(shared_->limits.header_timeout);
    stream_.Handshake([self = shared_from_this()](error_code ec) {
      if (self->state_ != State::kHandshake) return;
      if (!ec) return self->Begin();
      self->shared_->Refused("tls");  // not logged one by one: anyone can make many
      self->Close();
    });
  }
  void Begin() {
    peer_names_ = stream_.PeerNames();
    NewParser();
    state_ = State::kHeader;  // a connection that says nothing has no more time than a slow header
    SetTimer(shared_->limits.header_timeout);
    Read();
  }
  void Refuse(int status, absl::string_view reason, absl::string_view message);
  void CloseIfIdle() {
    if (state_ == State::kIdle || state_ == State::kHandshake ||
        (state_ == State::kHeader && buffer_.size() == 0)) {
      Close();
    }
  }
  void Close();

  // For the exchange `which`; ignored when it is no longer the current one.
  void Head(const Exchange* which, const HttpResponse& response, bool stream);
  void Piece(const Exchange* which, std::string piece);
  void Finish(const Exchange* which, bool complete);

 private:
  enum class State { kHandshake, kIdle, kHeader, kBody, kAnswer, kLinger, kClosed };
  using Parser = bhttp::request_parser<bhttp::string_body>;

  void NewParser() {
    parser_.emplace();
    parser_->header_limit(static_cast<uint32_t>(shared_->limits.max_header_bytes));
    parser_->body_limit(shared_->limits.max_body_bytes);
  }
  void SetTimer(Duration duration) {
    timer_.expires_after(duration);
    timer_.async_wait([self = shared_from_this()](error_code ec) {
      if (!ec && self->timer_.expiry() <= asio::steady_timer::clock_type::now()) self->TimedOut();
    });
  }
  void TimedOut();
  void Read();
  void OnRead(error_code ec, size_t n);
  void Parse();
  bool AcceptHeader();  // false: refused
  void ParseError(error_code ec);
  void Handle();
  void FreeBody() {
    shared_->body_bytes -= body_bytes_;
    body_bytes_ = 0;
  }
  void Append(absl::string_view bytes) { out_.append(bytes.data(), bytes.size()); }
  void AppendChunk(absl::string_view bytes);
  void Flush();
  void OnWritten(error_code ec, size_t n);
  void AnswerWritten();
  void Linger();

  Shared* const shared_;
  TlsStream stream_;
  asio::steady_timer timer_;
  std::string peer_;
  std::vector<std::string> peer_names_;
  State state_ = State::kIdle;
  // Not read into buffer_, of which a request may be parsed while a read is pending.
  std::array<char, kReadBytes> read_;
  beast::flat_buffer buffer_;
  bool reading_ = false;
  std::optional<Parser> parser_;
  size_t body_bytes_ = 0;  // reserved of the shared budget
  size_t lingered_ = 0;

  std::shared_ptr<Exchange> exchange_;  // of kAnswer
  bool keep_alive_ = false, chunked_ = false, head_only_ = false;
  bool ended_ = false;   // all of the answer is in out_
  bool broken_ = false;  // close when out_ is written
  std::string out_, writing_;
  size_t written_ = 0;  // of writing_
  bool write_pending_ = false;
};

template <typename F>
void Exchange::Post(F f) {
  asio::post(shared_->io, [self = shared_from_this(), f = std::move(f)]() mutable {
    if (self->over_) return;
    if (const auto c = self->connection_.lock()) f(c.get());
  });
}

void Exchange::Send(HttpResponse response) {
  Post([this, response = std::move(response)](Connection* c) {
    c->Head(this, response, /*stream=*/false);
    c->Finish(this, true);
  });
}

void Exchange::BeginStream(HttpResponse head) {
  Post([this, head = std::move(head)](Connection* c) { c->Head(this, head, /*stream=*/true); });
}

void Exchange::Write(std::string piece) {
  Post([this, piece = std::move(piece)](Connection* c) mutable {
    c->Piece(this, std::move(piece));
  });
}

void Exchange::End(bool complete) {
  Post([this, complete](Connection* c) { c->Finish(this, complete); });
}

void Exchange::OnGone(std::function<void()> gone) {
  asio::post(shared_->io, [self = shared_from_this(), gone = std::move(gone)]() mutable {
    if (self->gone_) {
      gone();
    } else if (!self->over_) {
      self->on_gone_ = std::move(gone);
    }
  });
}

void Exchange::Over(bool gone) {
  over_ = true;
  gone_ = gone;
  const std::function<void()> on_gone = std::exchange(on_gone_, nullptr);
  if (gone && on_gone) on_gone();
}

void Connection::TimedOut() {
  if (state_ == State::kClosed) return;
  if (state_ == State::kHandshake) shared_->Refused("slow");
  if (state_ == State::kHeader && buffer_.size() > 0) {
    return Refuse(408, "slow", "the request's headers did not come in time");
  }
  if (state_ == State::kBody) {
    return Refuse(408, "slow", "the request's body did not come in time");
  }
  if (state_ == State::kAnswer) shared_->Refused("slow_reader");
  Close();
}

void Connection::Read() {
  if (reading_ || state_ == State::kClosed) return;
  // While an answer is under way at most the next request's headers are taken in.
  if (state_ == State::kAnswer && buffer_.size() >= shared_->limits.max_header_bytes) return;
  reading_ = true;
  stream_.ReadSome(asio::buffer(read_),
                   [self = shared_from_this()](error_code ec, size_t n) { self->OnRead(ec, n); });
}

void Connection::OnRead(error_code ec, size_t n) {
  reading_ = false;
  if (state_ == State::kClosed) return;
  if (ec) return Close();  // the end of the stream too: who does not listen gets no answer
  if (state_ == State::kLinger) {
    lingered_ += n;
    if (lingered_ > kLingerBytes) return Close();
    return Read();
  }
  buffer_.commit(asio::buffer_copy(buffer_.prepare(n), asio::buffer(read_), n));
  if (state_ != State::kAnswer) {
    Parse();
  }
  Read();
}

void Connection::Parse() {
  if (state_ == State::kIdle && buffer_.size() > 0) {
    state_ = State::kHeader;
    SetTimer(shared_->limits.header_timeout);
  }
  while (state_ == State::kHeader || state_ == State::kBody) {
    if (buffer_.size() == 0 && !parser_->is_done()) return;
    error_code ec;
    const size_t n = parser_->is_done() ? 0 : parser_->put(buffer_.data(), ec);
    buffer_.consume(n);
    if (ec && ec != bhttp::error::need_more) return ParseError(ec);
    if (state_ == State::kHeader && parser_->is_header_done()) {
      if (!AcceptHeader()) return;
      state_ = State::kBody;
      SetTimer(shared_->limits.body_timeout);
      parser_->eager(true);
      continue;
    }
    if (parser_->is_done()) return Handle();
    // What the parser leaves of a body is the beginning of a chunk's line.
    if (state_ == State::kBody && buffer_.size() > shared_->limits.max_header_bytes) {
      return Refuse(400, "malformed", "a chunk's line is too long");
    }
    if (ec == bhttp::error::need_more || n == 0) return;
  }
}

bool Connection::AcceptHeader() {
  const auto& request = parser_->get();
  if (request.version() == 11 && request.count(bhttp::field::host) != 1) {
    Refuse(400, "malformed", "exactly one Host header is expected");
    return false;
  }
  if (request.count(bhttp::field::authorization) > 1) {  // which one would count?
    Refuse(400, "malformed", "at most one Authorization header is expected");
    return false;
  }
  const auto length = parser_->content_length();
  const size_t need = length               ? static_cast<size_t>(*length)
                      : parser_->chunked() ? shared_->limits.max_body_bytes
                                           : 0;
  if (shared_->body_bytes + need > shared_->limits.max_buffered_body_bytes) {
    Refuse(503, "memory", "too many large requests at once; try again in 1 s");
    return false;
  }
  body_bytes_ = need;
  shared_->body_bytes += need;
  if (need > 0 && absl::EqualsIgnoreCase(View(request[bhttp::field::expect]), "100-continue")) {
    Append("HTTP/1.1 100 Continue\r\n\r\n");
    Flush();
  }
  return true;
}

void Connection::ParseError(error_code ec) {
  if (ec == bhttp::error::header_limit || ec == bhttp::error::buffer_overflow) {
    return Refuse(431, "header",
                  absl::StrCat("the request's headers have more than ",
                               shared_->limits.max_header_bytes, " bytes"));
  }
  if (ec == bhttp::error::body_limit) {
    return Refuse(413, "body",
                  absl::StrCat("the request's body has more than ", shared_->limits.max_body_bytes,
                               " bytes"));
  }
  Refuse(400, "malformed", absl::StrCat("not an HTTP request: ", ec.message()));
}

void Connection::Handle() {
  auto message = parser_->release();
  HttpRequest request;
  request.method = std::string(View(message.method_string()));
  const absl::string_view target = View(message.target());
  const size_t question = target.find('?');
  request.path = std::string(target.substr(0, question));
  if (question != absl::string_view::npos) request.query = std::string(target.substr(question + 1));
  for (const auto& field : message) {
    request.headers.emplace_back(View(field.name_string()), View(field.value()));
  }
  request.body = std::move(message.body());
  shared_->body_bytes -= body_bytes_ - request.body.size();
  body_bytes_ = request.body.size();
  request.peer = peer_;
  request.certificate_names = peer_names_;
  keep_alive_ = message.keep_alive() && !shared_->stopping;
  chunked_ = message.version() == 11;
  head_only_ = request.method == "HEAD";
  ended_ = broken_ = false;
  state_ = State::kAnswer;
  timer_.cancel();
  timer_.expires_at(asio::steady_timer::time_point::max());
  exchange_ = std::make_shared<Exchange>(shared_, weak_from_this(), std::move(request));
  shared_->handler(exchange_);
}

void Connection::Head(const Exchange* which, const HttpResponse& response, bool stream) {
  if (exchange_.get() != which) return;
  if (stream && !chunked_) keep_alive_ = false;  // HTTP/1.0: the end is the connection's end
  Append(absl::StrCat("HTTP/1.1 ", response.status, " ", HttpReason(response.status), "\r\nDate: ",
                      HttpDate(), "\r\nContent-Type: ", response.content_type, "\r\n"));
  for (const auto& [name, value] : response.headers) {
    Append(absl::StrCat(name, ": ", value, "\r\n"));
  }
  if (!keep_alive_) Append("Connection: close\r\n");
  if (!stream) {
    chunked_ = false;
    Append(absl::StrCat("Content-Length: ", response.body.size(), "\r\n"));
  } else if (chunked_) {
    Append("Transfer-Encoding: chunked\r\n");
  }
  Append("\r\n");
  if (!head_only_) AppendChunk(response.body);
  Flush();
}

void Connection::AppendChunk(absl::string_view bytes) {
  if (bytes.empty()) return;  // an empty chunk would end the answer
  if (chunked_) Append(absl::StrCat(absl::Hex(bytes.size()), "\r\n"));
  Append(bytes);
  if (chunked_) Append("\r\n");
}

void Connection::Piece(const Exchange* which, std::string piece) {
  if (exchange_.get() != which || head_only_) return;
  AppendChunk(piece);
  if (out_.size() > shared_->limits.max_unsent_bytes) {
    shared_->Refused("slow_reader");
    return Close();
  }
  Flush();
}

void Connection::Finish(const Exchange* which, bool complete) {
  if (exchange_.get() != which) return;
  if (complete && chunked_ && !head_only_) Append("0\r\n\r\n");
  broken_ = !complete;
  ended_ = true;
  exchange_->Over(/*gone=*/false);
  exchange_.reset();
  FreeBody();
  Flush();
  if (!write_pending_) AnswerWritten();
}

void Connection::Refuse(int status, absl::string_view reason, absl::string_view message) {
  if (state_ == State::kClosed) return;
  shared_->Refused(reason);
  if (exchange_ != nullptr) {
    exchange_->Over(false);
    exchange_.reset();
  }
  FreeBody();
  // The message holds nothing of the client's: no need to escape it.
  const std::string body = absl::StrCat("{\"error\":{\"message\":\"", message, "\",\"type\":\"",
                                        status < 500 ? "invalid_request_error" : "server_error",
                                        "\",\"param\":null,\"code\":\"http_", status, "\"}}\n");
  Append(absl::StrCat("HTTP/1.1 ", status, " ", HttpReason(status), "\r\nDate: ", HttpDate(),
                      "\r\nContent-Type: application/json\r\nContent-Length: ", body.size(),
                      "\r\nConnection: close\r\n", status == 503 ? "Retry-After: 1\r\n" : "",
                      "\r\n", body));
  state_ = State::kAnswer;
  ended_ = true;
  keep_alive_ = false;
  Flush();
}

void Connection::Flush() {
  if (write_pending_ || state_ == State::kClosed) return;
  if (written_ == writing_.size()) {
    writing_.clear();
    writing_.swap(out_);
    written_ = 0;
  }
  if (writing_.empty()) return;
  write_pending_ = true;
  SetTimer(shared_->limits.write_timeout);
  const size_t n = std::min(kWriteBytes, writing_.size() - written_);
  stream_.Write(asio::buffer(writing_.data() + written_, n),
                [self = shared_from_this()](error_code ec, size_t n) { self->OnWritten(ec, n); });
}

void Connection::OnWritten(error_code ec, size_t n) {
  write_pending_ = false;
  if (state_ == State::kClosed) return;
  if (ec) return Close();
  written_ += n;
  Flush();
  if (write_pending_) return;
  if (state_ == State::kBody) return SetTimer(shared_->limits.body_timeout);  // 100 Continue
  timer_.expires_at(asio::steady_timer::time_point::max());
  if (ended_) AnswerWritten();
}

void Connection::AnswerWritten() {
  if (state_ != State::kAnswer) return;
  if (broken_) return Close();
  if (!keep_alive_ || shared_->stopping) return Linger();
  NewParser();
  ended_ = false;
  state_ = State::kIdle;
  SetTimer(shared_->limits.idle_timeout);
  // A request that came meanwhile, not from inside of this one's handler.
  asio::post(shared_->io, [self = shared_from_this()] {
    if (self->state_ != State::kIdle) return;
    self->Parse();
    self->Read();
  });
}

// Closing at once would make the client's system drop what it has not read yet, if more of the
// request comes.
void Connection::Linger() {
  state_ = State::kLinger;
  stream_.EndWriting(shared_from_this());
  buffer_.consume(buffer_.size());
  SetTimer(kLingerTime);
  Read();
}

void Connection::Close() {
  if (state_ == State::kClosed) return;
  const auto self = shared_from_this();
  state_ = State::kClosed;
  FreeBody();
  error_code ec;
  stream_.socket().close(ec);
  timer_.cancel();
  if (exchange_ != nullptr) {
    exchange_->Over(/*gone=*/true);
    exchange_.reset();
  }
  shared_->connections.erase(self);
  if (shared_->events.connections) {
    shared_->events.connections(static_cast<int>(shared_->connections.size()));
  }
  if (shared_->connections.empty() && shared_->all_closed) shared_->all_closed();
}

}  // namespace

absl::string_view HttpRequest::header(absl::string_view name) const {
  for (const auto& [key, value] : headers) {
    if (absl::EqualsIgnoreCase(key, name)) return value;
  }
  return "";
}

const char* HttpReason(int status) {
  switch (status) {
    case 499:
      return "Client Closed Request";
    default:
      return bhttp::obsolete_reason(bhttp::int_to_status(static_cast<unsigned>(status))).data();
  }
}

struct HttpServer::Impl {
  std::unique_ptr<TlsContexts> tls;  // null: plain text
  Shared shared;
  tcp::acceptor acceptor{shared.io};
  asio::steady_timer retry{shared.io};
  asio::executor_work_guard<asio::io_context::executor_type> work{shared.io.get_executor()};
  std::thread thread;
  int port = 0;

  absl::Status Listen(const std::string& address);
  void Accept();
  void OnAccept(error_code ec, tcp::socket socket);
};

absl::Status HttpServer::Impl::Listen(const std::string& address) {
  const size_t colon = address.rfind(':');
  int number = 0;
  if (colon == std::string::npos || colon == 0 ||
      !absl::SimpleAtoi(address.substr(colon + 1), &number) || number < 0 || number > 65535) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", address, "\": expected HOST:PORT, the port within 0..65535"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  error_code ec;
  tcp::resolver resolver(shared.io);
  const auto found = resolver.resolve(host, address.substr(colon + 1), tcp::resolver::passive, ec);
  if (ec || found.empty()) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", ec.message()));
  }
  const tcp::endpoint endpoint = found.begin()->endpoint();
  acceptor.open(endpoint.protocol(), ec);
  if (!ec) acceptor.set_option(tcp::acceptor::reuse_address(true), ec);
  if (!ec) acceptor.bind(endpoint, ec);
  if (!ec) acceptor.listen(asio::socket_base::max_listen_connections, ec);
  if (ec) {
    return absl::UnavailableError(absl::StrCat("cannot listen on ", address, ": ", ec.message()));
  }
  port = acceptor.local_endpoint(ec).port();
  return absl::OkStatus();
}

void HttpServer::Impl::Accept() {
  acceptor.async_accept(
      [this](error_code ec, tcp::socket socket) { OnAccept(ec, std::move(socket)); });
}

void HttpServer::Impl::OnAccept(error_code ec, tcp::socket socket) {
  if (shared.stopping || ec == asio::error::operation_aborted) return;
  if (ec) {  // out of descriptors, most likely: a connection that ends gives one back
    LogWarn("http: cannot accept", {{"error", ec.message()}});
    retry.expires_after(std::chrono::milliseconds(100));
    retry.async_wait([this](error_code stopped) {
      if (!stopped) Accept();
    });
    return;
  }
  const bool full = shared.connections.size() >= shared.limits.max_connections;
  // A few more, for a moment, are told that there are too many.
  if (shared.connections.size() < shared.limits.max_connections + 64) {
    auto connection = std::make_shared<Connection>(&shared, std::move(socket),
                                                   tls == nullptr ? nullptr : tls->Current());
    shared.connections.insert(connection);
    if (shared.events.connections) {
      shared.events.connections(static_cast<int>(shared.connections.size()));
    }
    if (full && tls != nullptr) {  // an answer would need a handshake
      shared.Refused("connections");
      connection->Close();
    } else if (full) {
      connection->Refuse(503, "connections", "too many connections; try again in 1 s");
    } else {
      connection->Start();
    }
  } else {
    shared.Refused("connections");
  }
  Accept();
}

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(const HttpServerSettings& settings,
                                                              HttpHandler handler,
                                                              HttpEvents events) {
  auto impl = std::make_unique<Impl>();
  impl->shared.limits = settings.limits;
  impl->shared.handler = std::move(handler);
  impl->shared.events = std::move(events);
  if (settings.security.serves_tls()) {
    ASSIGN_OR_RETURN(impl->tls, TlsContexts::Create(settings.security, SteadyClock::Get()));
  }
  RETURN_IF_ERROR(impl->Listen(settings.listen));
  impl->Accept();
  impl->thread = std::thread([impl = impl.get()] { impl->shared.io.run(); });
  pthread_setname_np(impl->thread.native_handle(), settings.thread_name.substr(0, 15).c_str());
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

HttpServer::~HttpServer() {
  Stop(Duration{0});
}

int HttpServer::port() const {
  return impl_->port;
}

void HttpServer::Stop(Duration drain) {
  if (!impl_->thread.joinable()) return;
  asio::steady_timer deadline(impl_->shared.io);
  asio::post(impl_->shared.io, [&, impl = impl_.get()] {
    Shared& shared = impl->shared;
    shared.stopping = true;
    error_code ec;
    impl->acceptor.close(ec);
    impl->retry.cancel();
    const auto copy = shared.connections;
    for (const auto& connection : copy) connection->CloseIfIdle();
    const auto finish = [impl, &deadline] {
      impl->shared.all_closed = nullptr;
      deadline.cancel();
      const auto left = impl->shared.connections;
      for (const auto& connection : left) connection->Close();
      impl->work.reset();
      impl->shared.io.stop();
    };
    if (shared.connections.empty()) return finish();
    shared.all_closed = [impl, finish] { asio::post(impl->shared.io, finish); };
    deadline.expires_after(drain);
    deadline.async_wait([finish](error_code cancelled) {
      if (!cancelled) finish();
    });
  });
  impl_->thread.join();
}

}  // namespace oscarkv
