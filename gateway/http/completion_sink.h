// Where the core puts an answer that goes out over HTTP.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "common/http/http_server.h"
#include "gateway/http/openai_response.h"
#include "gateway/request.h"

namespace oscarkv::gateway {

// Deletes itself in Finish. Streams begin with the first text: what fails before has a status code
// of its own.
class CompletionSink final : public GenerateSink {
 public:
  // done: called once, with the answer's HTTP status.
  CompletionSink(std::shared_ptr<HttpExchange> exchange, OpenAiAnswer answer, bool stream,
                 std::function<void(int)> done)
      : exchange_(std::move(exchange)),
        answer_(std::move(answer)),
        stream_(stream),
        done_(std::move(done)) {}

  void Accepted(const std::string& request_id) override;
  void Write(GenerateOutput output) override;
  void Finish(const absl::Status& status) override;

 private:
  void Stream(std::string events);
  void AddHeaders(HttpResponse* response) const;

  const std::shared_ptr<HttpExchange> exchange_;
  OpenAiAnswer answer_;
  const bool stream_;
  const std::function<void(int)> done_;
  bool begun_ = false;  // the stream
};

}  // namespace oscarkv::gateway
