// The HTTP server over real sockets: what it serves, and what hostile clients get.
#include "common/http/http_server.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <map>

#include "absl/strings/str_cat.h"
#include "common/mutex.h"

namespace oscarkv {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::StartsWith;

// A client that says exactly the bytes it is told to.
class RawClient {
 public:
  explicit RawClient(int port) : fd_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    EXPECT_EQ(::connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    const timeval patience = {30, 0};
    ::setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
  }
  ~RawClient() { Close(); }
  void Close() {
    if (fd_ >= 0) ::close(std::exchange(fd_, -1));
  }
  void Send(const std::string& bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::send(fd_, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return;  // refused meanwhile
      done += static_cast<size_t>(n);
    }
  }
  // Until the server closes.
  std::string ReadAll() {
    while (ReadSome()) {
    }
    return std::exchange(got_, "");
  }
  // Until `end` was read; what follows it is kept.
  std::string ReadUntil(const std::string& end) {
    size_t at = got_.find(end);
    while (at == std::string::npos && ReadSome()) at = got_.find(end);
    EXPECT_NE(at, std::string::npos) << "no \"" << end << "\" in: " << got_;
    const std::string text = got_.substr(0, at == std::string::npos ? at : at + end.size());
    got_.erase(0, text.size());
    return text;
  }
  int fd() const { return fd_; }

 private:
  bool ReadSome() {
    char buffer[4096];
    const ssize_t n = ::recv(fd_, buffer, sizeof(buffer), 0);
    if (n <= 0) return false;
    got_.append(buffer, static_cast<size_t>(n));
    return true;
  }
  int fd_;
  std::string got_;
};

class HttpServerTest : public ::testing::Test {
 protected:
  // Answers with method, path and body; keeps the exchanges of /hold.
  void Start(const HttpLimits& limits = {}) {
    HttpEvents events;
    events.refused = [this](absl::string_view reason) {
      MutexLock lock(mu_);
      ++refused_[std::string(reason)];
    };
    events.connections = [this](int open) { open_ = open; };
    HttpServerSettings settings;
    settings.listen = "127.0.0.1:0";
    settings.limits = limits;
    auto started = HttpServer::Start(
        settings, [this](std::shared_ptr<HttpExchange> exchange) { Handle(std::move(exchange)); },
        events);
    ASSERT_TRUE(started.ok()) << started.status();
    server_ = *std::move(started);
  }
  void Handle(std::shared_ptr<HttpExchange> exchange) {
    const HttpRequest& r = exchange->request();
    if (r.path == "/hold") {
      MutexLock lock(mu_);
      held_ = exchange;
      changed_.NotifyAll();
      return;
    }
    HttpResponse response;
    response.content_type = "text/plain";
    response.body = absl::StrCat(r.method, " ", r.path, "|", r.query, "|", r.header("x-test"), "|",
                                 r.body.size() > 100 ? absl::StrCat(r.body.size()) : r.body);
    exchange->Send(std::move(response));
  }
  std::shared_ptr<HttpExchange> WaitHeld() {
    MutexLock lock(mu_);
    while (held_ == nullptr) changed_.Wait(mu_);
    return std::exchange(held_, nullptr);
  }
  int refused(const std::string& reason) {
    MutexLock lock(mu_);
    return refused_[reason];
  }
  std::string Ask(const std::string& bytes) {
    RawClient client(server_->port());
    client.Send(bytes);
    return client.ReadAll();
  }

  std::unique_ptr<HttpServer> server_;
  std::atomic<int> open_{0};
  Mutex mu_;
  CondVar changed_;
  std::shared_ptr<HttpExchange> held_ GUARDED_BY(mu_);
  std::map<std::string, int> refused_ GUARDED_BY(mu_);
};

const char kClose[] = "Host: x\r\nConnection: close\r\n";

TEST_F(HttpServerTest, AnswersOneRequest) {
  Start();
  const std::string answer = Ask(absl::StrCat(
      "POST /a/b?c=d HTTP/1.1\r\nX-Test: yes\r\nContent-Length: 5\r\n", kClose, "\r\nhello"));
  EXPECT_THAT(answer, StartsWith("HTTP/1.1 200 OK\r\nDate: "));
  EXPECT_THAT(answer, HasSubstr("Content-Type: text/plain\r\n"));
  EXPECT_THAT(answer, HasSubstr("Connection: close\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nPOST /a/b|c=d|yes|hello"));
}

TEST_F(HttpServerTest, KeepsAConnectionForFurtherRequestsAlsoPipelinedOnes) {
  Start();
  RawClient client(server_->port());
  const std::string request = "GET /1 HTTP/1.1\r\nHost: x\r\n\r\n";
  client.Send(request + "POST /2 HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nab" + request);
  client.ReadUntil("GET /1|||");
  client.ReadUntil("POST /2|||ab");
  client.ReadUntil("GET /1|||");
  client.Send("GET /4 HTTP/1.0\r\n\r\n");
  EXPECT_THAT(client.ReadAll(), EndsWith("GET /4|||"));
}

TEST_F(HttpServerTest, ReadsChunkedBodiesByteByByte) {
  Start();
  RawClient client(server_->port());
  const std::string request = absl::StrCat("POST /c HTTP/1.1\r\nTransfer-Encoding: chunked\r\n",
                                           kClose, "\r\n3;ext=1\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
  for (const char c : request) client.Send(std::string(1, c));
  EXPECT_THAT(client.ReadAll(), EndsWith("POST /c|||abcde"));
}

TEST_F(HttpServerTest, InvitesABodyThatWaitsForIt) {
  Start();
  RawClient client(server_->port());
  client.Send(absl::StrCat("POST /e HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n",
                           kClose, "\r\n"));
  client.ReadUntil("HTTP/1.1 100 Continue\r\n\r\n");
  client.Send("abc");
  EXPECT_THAT(client.ReadAll(), EndsWith("POST /e|||abc"));
}

TEST_F(HttpServerTest, AnswersHeadWithoutABody) {
  Start();
  const std::string answer = Ask(absl::StrCat("HEAD /h HTTP/1.1\r\n", kClose, "\r\n"));
  EXPECT_THAT(answer, HasSubstr("Content-Length: 10\r\n"));
  EXPECT_THAT(answer, EndsWith("\r\n\r\n"));
}

TEST_F(HttpServerTest, RefusesWhatIsMalformedOrTooLarge) {
  HttpLimits limits;
  limits.max_header_bytes = 1024;
  limits.max_body_bytes = 1000;
  Start(limits);
  const std::string long_value(2000, 'x');
  const struct {
    const char* name;
    std::string request;
    const char* status;
    const char* reason;
  } cases[] = {
      {"Garbage", "\x16\x03\x01\x02\r\n\r\n", "400", "malformed"},
      {"NoHost", "GET / HTTP/1.1\r\n\r\n", "400", "malformed"},
      {"TwoHosts", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400", "malformed"},
      {"Version", "GET / HTTP/1.7\r\nHost: a\r\n\r\n", "400", "malformed"},
      {"SpaceInName", "GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400", "malformed"},
      {"BareNewline", "GET / HTTP/1.1\nHost: a\n\n", "400", "malformed"},
      {"LongHeader", "GET / HTTP/1.1\r\nHost: a\r\nX: " + long_value + "\r\n\r\n", "431", "header"},
      {"LongPath", "GET /" + long_value + " HTTP/1.1\r\nHost: a\r\n\r\n", "431", "header"},
      {"LongBody", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1001\r\n\r\n", "413", "body"},
      {"HugeLength",
       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", "400",
       "malformed"},
      {"NegativeLength", "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n", "400",
       "malformed"},
      {"TwoLengths",
       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "400",
       "malformed"},
      {"LengthAndChunked",
       "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: "
       "chunked\r\n\r\n0\r\n\r\n",
       "400", "malformed"},
      {"LongChunk",
       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e9\r\n" +
           std::string(1001, 'x') + "\r\n0\r\n\r\n",
       "413", "body"},
      {"BadChunk", "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
       "400", "malformed"},
      {"EndlessChunkLine",
       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;" +
           std::string(100'000, 'x'),
       "400", "malformed"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const int before = refused(c.reason);
    const std::string answer = Ask(c.request);
    EXPECT_THAT(answer, StartsWith(absl::StrCat("HTTP/1.1 ", c.status, " ")));
    EXPECT_THAT(answer, HasSubstr("{\"error\":{\"message\":\""));
    EXPECT_EQ(refused(c.reason), before + 1);
  }
}

TEST_F(HttpServerTest, RefusesSlowHeadersAndBodies) {
  HttpLimits limits;
  limits.header_timeout = limits.body_timeout = std::chrono::milliseconds(50);
  Start(limits);
  EXPECT_THAT(Ask("GET / HTTP/1.1\r\nX: "), StartsWith("HTTP/1.1 408 "));
  EXPECT_THAT(Ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nab"),
              StartsWith("HTTP/1.1 408 "));
  EXPECT_EQ(Ask(""), "") << "who says nothing is left without a word";
}

TEST_F(HttpServerTest, ClosesConnectionsThatAreIdle) {
  HttpLimits limits;
  limits.idle_timeout = std::chrono::milliseconds(50);
  Start(limits);
  EXPECT_THAT(Ask("GET /i HTTP/1.1\r\nHost: a\r\n\r\n"), EndsWith("GET /i|||"));
}

TEST_F(HttpServerTest, RefusesConnectionsBeyondTheLimit) {
  HttpLimits limits;
  limits.max_connections = 1;
  Start(limits);
  RawClient first(server_->port());
  first.Send("GET /1 HTTP/1.1\r\nHost: a\r\n\r\n");
  first.ReadUntil("GET /1|||");
  EXPECT_THAT(Ask("GET / HTTP/1.1\r\nHost: a\r\n\r\n"), StartsWith("HTTP/1.1 503 "));
  EXPECT_EQ(refused("connections"), 1);
  first.Send("GET /2 HTTP/1.1\r\nHost: a\r\n\r\n");
  first.ReadUntil("GET /2|||");
}

TEST_F(HttpServerTest, RefusesBodiesBeyondTheSharedMemory) {
  HttpLimits limits;
  limits.max_body_bytes = limits.max_buffered_body_bytes = 1000;
  Start(limits);
  RawClient first(server_->port());
  first.Send("POST /hold HTTP/1.1\r\nHost: a\r\nContent-Length: 600\r\n\r\n" +
             std::string(600, 'x'));
  const auto held = WaitHeld();
  const std::string second =
      "POST /2 HTTP/1.1\r\nConnection: close\r\nHost: a\r\nContent-Length: "
      "600\r\n\r\n" +
      std::string(600, 'x');
  EXPECT_THAT(Ask(second), StartsWith("HTTP/1.1 503 "));
  held->Send({});
  first.ReadUntil("Content-Length: 0\r\n\r\n");
  EXPECT_THAT(Ask(second), EndsWith("POST /2|||600")) << "given back with the first one's answer";
}

TEST_F(HttpServerTest, StreamsInChunks) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  HttpResponse head;
  head.content_type = "text/event-stream";
  head.body = "data: 1\n\n";
  exchange->BeginStream(head);
  EXPECT_THAT(client.ReadUntil("9\r\ndata: 1\n\n\r\n"),
              HasSubstr("Transfer-Encoding: chunked\r\n"));
  exchange->Write("more");
  client.ReadUntil("4\r\nmore\r\n");
  exchange->End(true);
  exchange->Write("dropped");
  client.ReadUntil("0\r\n\r\n");
  client.Send("GET /next HTTP/1.1\r\nHost: a\r\n\r\n");
  EXPECT_THAT(client.ReadUntil("GET /next|||"), Not(HasSubstr("dropped")));
}

TEST_F(HttpServerTest, StreamsToOldClientsUntilTheConnectionEnds) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
  const auto exchange = WaitHeld();
  exchange->BeginStream({});
  exchange->Write("abc");
  exchange->End(true);
  const std::string answer = client.ReadAll();
  EXPECT_THAT(answer, Not(HasSubstr("chunked")));
  EXPECT_THAT(answer, EndsWith("\r\n\r\nabc"));
}

TEST_F(HttpServerTest, AnIncompleteStreamBreaksTheConnection) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  exchange->BeginStream({});
  exchange->Write("abc");
  exchange->End(false);
  EXPECT_THAT(client.ReadAll(), EndsWith("3\r\nabc\r\n"));
}

class Flag {
 public:
  void Set() {
    MutexLock lock(mu_);
    ++times_;
    changed_.NotifyAll();
  }
  void Wait() {
    MutexLock lock(mu_);
    while (times_ == 0) changed_.Wait(mu_);
  }
  int times() {
    MutexLock lock(mu_);
    return times_;
  }

 private:
  Mutex mu_;
  CondVar changed_;
  int times_ GUARDED_BY(mu_) = 0;
};

TEST_F(HttpServerTest, TellsThatTheClientWent) {
  Start();
  for (const bool streaming : {false, true}) {
    RawClient client(server_->port());
    client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    const auto exchange = WaitHeld();
    Flag gone, late;
    exchange->OnGone([&] { gone.Set(); });
    if (streaming) exchange->BeginStream({});
    client.Close();
    gone.Wait();
    exchange->OnGone([&] { late.Set(); });  // at once
    late.Wait();
    exchange->Send({});  // goes nowhere
  }
}

TEST_F(HttpServerTest, AClientThatDoesNotReadIsLeft) {
  HttpLimits limits;
  limits.max_unsent_bytes = 1 << 20;
  Start(limits);
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  Flag gone;
  exchange->OnGone([&] { gone.Set(); });
  exchange->BeginStream({});
  // More than the sockets' buffers and the limit hold.
  for (int i = 0; i < 64; ++i) exchange->Write(std::string(1 << 20, 'x'));
  gone.Wait();
  EXPECT_EQ(refused("slow_reader"), 1);
}

TEST_F(HttpServerTest, AnAnswerThatDoesNotMoveIsGivenUp) {
  HttpLimits limits;
  limits.max_unsent_bytes = 256 << 20;
  limits.write_timeout = std::chrono::milliseconds(100);
  Start(limits);
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  Flag gone;
  exchange->OnGone([&] { gone.Set(); });
  exchange->BeginStream({});
  exchange->Write(std::string(64 << 20, 'x'));
  gone.Wait();
  EXPECT_EQ(refused("slow_reader"), 1);
}

TEST_F(HttpServerTest, StopLetsAnswersUnderWayBeWritten) {
  Start();
  RawClient idle(server_->port()), client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  std::thread stop([&] { server_->Stop(std::chrono::seconds(30)); });
  EXPECT_EQ(idle.ReadAll(), "") << "closed, as nothing is under way on it";
  HttpResponse last;
  last.body = "last";
  exchange->Send(last);
  EXPECT_THAT(client.ReadAll(), EndsWith("last"));
  client.Close();
  stop.join();
  EXPECT_EQ(open_, 0);
}

TEST_F(HttpServerTest, StopEndsWhatDoesNotEnd) {
  Start();
  RawClient client(server_->port());
  client.Send("GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
  const auto exchange = WaitHeld();
  Flag gone;
  exchange->OnGone([&] { gone.Set(); });
  server_->Stop(Duration{0});
  EXPECT_EQ(gone.times(), 1);
  exchange->Send({});
}

TEST(HttpServerAddress, RefusalsNameTheAddress) {
  const struct {
    const char* address;
    absl::StatusCode code;
  } cases[] = {{"127.0.0.1", absl::StatusCode::kInvalidArgument},
               {":80", absl::StatusCode::kInvalidArgument},
               {"127.0.0.1:99999", absl::StatusCode::kInvalidArgument},
               {"192.0.2.1:80", absl::StatusCode::kUnavailable}};
  for (const auto& c : cases) {
    HttpServerSettings settings;
    settings.listen = c.address;
    const auto server = HttpServer::Start(settings, nullptr, {});
    EXPECT_EQ(server.status().code(), c.code) << c.address;
    EXPECT_THAT(std::string(server.status().message()), HasSubstr(c.address));
  }
}

}  // namespace
}  // namespace oscarkv
