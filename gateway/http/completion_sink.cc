#include "gateway/http/completion_sink.h"

#include <utility>

namespace oscarkv::gateway {

void CompletionSink::Accepted(const std::string& request_id) {
  answer_.set_request_id(request_id);
}

void CompletionSink::AddHeaders(HttpResponse* response) const {
  const std::string& id = answer_.identity().request_id;
  if (!id.empty()) response->headers.emplace_back("X-Request-Id", id);
  response->headers.emplace_back("Cache-Control", "no-store");
}

void CompletionSink::Stream(std::string events) {
  if (events.empty()) return;
  if (begun_) return exchange_->Write(std::move(events));
  begun_ = true;
  HttpResponse head;
  head.content_type = "text/event-stream; charset=utf-8";
  head.body = std::move(events);
  head.headers.emplace_back("X-Accel-Buffering", "no");  // proxies: pass it on as it comes
  AddHeaders(&head);
  exchange_->BeginStream(std::move(head));
}

void CompletionSink::Write(GenerateOutput output) {
  if (stream_) {
    Stream(answer_.Events(output));
  } else {
    answer_.Add(output);
  }
}

void CompletionSink::Finish(const absl::Status& status) {
  if (begun_) {
    if (!status.ok()) exchange_->Write(OpenAiAnswer::ErrorEvent(status));
    exchange_->End(/*complete=*/true);
    done_(status.ok() ? 200 : HttpStatus(status));
  } else {
    HttpResponse response;
    if (status.ok()) {
      response.body = answer_.Whole();
    } else {
      response = ErrorResponse(status);
    }
    AddHeaders(&response);
    done_(response.status);
    exchange_->Send(std::move(response));
  }
  delete this;
}

}  // namespace oscarkv::gateway
