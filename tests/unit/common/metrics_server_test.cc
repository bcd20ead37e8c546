#include "common/metrics_server.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace oscarkv {
namespace {

using ::testing::HasSubstr;

std::string HttpGet(int port, const std::string& path) {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  std::string answer;
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0) {
    const std::string request = "GET " + path + " HTTP/1.0\r\nHost: localhost\r\n\r\n";
    if (write(fd, request.data(), request.size()) == static_cast<ssize_t>(request.size())) {
      char buffer[4096];
      for (ssize_t n; (n = read(fd, buffer, sizeof(buffer))) > 0;) answer.append(buffer, n);
    }
  }
  close(fd);
  return answer;
}

MetricsServerSettings At(const std::string& address) {
  MetricsServerSettings settings;
  settings.listen = address;
  return settings;
}

TEST(MetricsServerTest, ExposesEveryKind) {
  MetricRegistry registry;
  registry.AddCounter("oscarkv_test_bytes_total", "Bytes.", {"lane"}).With({"tcp"}).Add(7);
  registry.AddGauge("oscarkv_test_depth", "Depth.").Get().Set(-2);
  Histogram& h = registry.AddHistogram("oscarkv_test_seconds", "Time.", {1, 2}).GetHistogram();
  for (const double v : {0.5, 1.5, 9.0}) h.Observe(v);
  const auto server = MetricsServer::Start(At("127.0.0.1:0"), &registry);
  ASSERT_TRUE(server.ok()) << server.status();
  ASSERT_GT((*server)->port(), 0);
  const std::string text = HttpGet((*server)->port(), "/metrics");
  for (const char* line :
       {"200 OK", "# TYPE oscarkv_test_bytes_total counter",
        "oscarkv_test_bytes_total{lane=\"tcp\"} 7", "# TYPE oscarkv_test_depth gauge",
        "oscarkv_test_depth -2", "oscarkv_test_seconds_bucket{le=\"1\"} 1",
        "oscarkv_test_seconds_bucket{le=\"2\"} 2", "oscarkv_test_seconds_bucket{le=\"+Inf\"} 3",
        "oscarkv_test_seconds_count 3", "oscarkv_test_seconds_sum 11"}) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(MetricsServerTest, AnythingElseIsRefused) {
  MetricRegistry registry;
  const auto server = MetricsServer::Start(At("127.0.0.1:0"), &registry);
  ASSERT_TRUE(server.ok()) << server.status();
  EXPECT_THAT(HttpGet((*server)->port(), "/"), HasSubstr("404 Not Found"));
  EXPECT_THAT(HttpGet((*server)->port(), "/metrics/../x"), HasSubstr("404 Not Found"));
  EXPECT_THAT(HttpGet((*server)->port(), "/" + std::string(20000, 'x')), HasSubstr("431 "));
  const std::string text = HttpGet((*server)->port(), "/metrics");
  EXPECT_THAT(text, HasSubstr("oscarkv_metrics_http_requests_total{code=\"404\"} 2"));
  EXPECT_THAT(text, HasSubstr("oscarkv_metrics_http_refused_total{reason=\"header\"} 1"));
}

TEST(MetricsServerTest, BusyPortIsAnError) {
  MetricRegistry registry;
  const auto server = MetricsServer::Start(At("127.0.0.1:0"), &registry);
  ASSERT_TRUE(server.ok()) << server.status();
  const std::string address = "127.0.0.1:" + std::to_string((*server)->port());
  const absl::Status s = MetricsServer::Start(At(address), &registry).status();
  EXPECT_EQ(s.code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(s.message()), HasSubstr("cannot serve metrics on " + address));
}

}  // namespace
}  // namespace oscarkv
