#include "gateway/metrics.h"

namespace oscarkv::gateway {

GatewayMetrics::GatewayMetrics(MetricRegistry* r)
    : requests(r->AddCounter("oscarkv_gateway_requests_total",
                             "Generate requests that ended, by status code.", {"code"})),
      retries(r->AddCounter("oscarkv_gateway_retries_total",
                            "Calls repeated on another worker, by stage (prefill, decode).",
                            {"stage"})),
      resumes(r->AddCounter("oscarkv_gateway_resumes_total",
                            "Answers continued on another attention worker, by what became of the "
                            "former one (failed, silent, handed_over).",
                            {"reason"})),
      worker_waits(r->AddCounter("oscarkv_gateway_worker_waits_total",
                                 "Requests under way that waited because no worker of a role was "
                                 "usable, by what became of it (came_back, gave_up).",
                                 {"outcome"})),
      worker_failures(r->AddCounter("oscarkv_gateway_worker_failures_total",
                                    "Prefill and Decode calls that a worker failed.",
                                    {"role", "endpoint"})),
      worker_up(r->AddGauge("oscarkv_gateway_worker_up",
                            "1 while the worker answers and agrees with the others, else 0.",
                            {"role", "endpoint"})),
      running(r->AddGauge("oscarkv_gateway_running_requests", "Requests that hold a running slot.")
                  .Get()),
      waiting(r->AddGauge("oscarkv_gateway_waiting_requests",
                          "Requests that were accepted and wait for a running slot.")
                  .Get()),
      queue_age_seconds(r->AddGauge("oscarkv_gateway_queue_age_seconds",
                                    "How long the oldest waiting request has waited.")
                            .Get()),
      queue_seconds(r->AddHistogram("oscarkv_gateway_queue_seconds",
                                    "From a request's arrival to its running slot.",
                                    LatencySecondsBounds())
                        .GetHistogram()),
      ttft_seconds(r->AddHistogram("oscarkv_gateway_ttft_seconds",
                                   "From a request's arrival to its first token.",
                                   LatencySecondsBounds())
                       .GetHistogram()),
      tpot_seconds(r->AddHistogram("oscarkv_gateway_tpot_seconds",
                                   "Mean time per token after the first, of each finished answer.",
                                   LatencySecondsBounds())
                       .GetHistogram()),
      resume_seconds(r->AddHistogram("oscarkv_gateway_resume_seconds",
                                     "From the last token before an answer lost its attention "
                                     "worker to the first one from another.",
                                     LatencySecondsBounds())
                         .GetHistogram()),
      prompt_tokens(r->AddCounter("oscarkv_gateway_prompt_tokens_total",
                                  "Prompt tokens of requests that reached their first token.")
                        .Get()),
      cached_tokens(r->AddCounter("oscarkv_gateway_cached_tokens_total",
                                  "Prompt tokens that came from the store instead of a prefill.")
                        .Get()),
      generated_tokens(
          r->AddCounter("oscarkv_gateway_generated_tokens_total", "Tokens sent to clients.").Get()),
      match_failures(r->AddCounter("oscarkv_gateway_match_failures_total",
                                   "Prefix lookups that failed and counted as a miss.")
                         .Get()),
      client_retries(r->AddCounter("oscarkv_gateway_client_retries_total",
                                   "Requests that came with the tokens of an earlier attempt.")
                         .Get()),
      blocks_not_stored(
          r->AddCounter("oscarkv_gateway_blocks_not_stored_total",
                        "Blocks of prompts that the store refused or lost during a prefill.")
              .Get()),
      compression_ratio(
          r->AddHistogram("oscarkv_gateway_answer_compression_ratio",
                          "KV bytes in bf16 divided by KV bytes as held, of each finished answer.",
                          {1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8})
              .GetHistogram()),
      http_requests(r->AddCounter("oscarkv_gateway_http_requests_total",
                                  "HTTP requests that were answered, by route and status code "
                                  "(499: the client left).",
                                  {"route", "code"})),
      http_refused(
          r->AddCounter("oscarkv_gateway_http_refused_total",
                        "HTTP requests and connections that broke a limit of the server: "
                        "tls, header, body, memory, connections, slow, slow_reader, malformed.",
                        {"reason"})),
      http_connections(
          r->AddGauge("oscarkv_gateway_http_connections", "Open HTTP connections.").Get()) {
  // There from the start: Prometheus does not see the first increments of a series that appears
  // with them, and OscarkvErrors would miss the first burst.
  for (const char* code : {"OK", "CANCELLED", "RESOURCE_EXHAUSTED", "UNAVAILABLE",
                           "DEADLINE_EXCEEDED", "ABORTED", "INTERNAL", "DATA_LOSS"}) {
    requests.With({code});
  }
  for (const char* reason :
       {"tls", "header", "body", "memory", "connections", "slow", "slow_reader", "malformed"}) {
    http_refused.With({reason});
  }
}

}  // namespace oscarkv::gateway
