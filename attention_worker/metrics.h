// Metrics of the attention worker.
#pragma once

#include "common/metrics.h"

namespace oscarkv {

struct AttentionMetrics {
  explicit AttentionMetrics(MetricRegistry* registry)
      : requests(registry->AddCounter("oscarkv_attention_requests_total",
                                      "Sequences that ended, by status code.", {"code"})),
        tokens(registry->AddCounter("oscarkv_attention_tokens_total", "Tokens generated.").Get()),
        recomputed_tokens(
            registry
                ->AddCounter("oscarkv_attention_recomputed_tokens_total",
                             "Tokens whose KV was missing in the store and was computed again.")
                .Get()),
        preemptions(
            registry
                ->AddCounter(
                    "oscarkv_attention_preemptions_total",
                    "Sequences that gave up their slots to an older one and were resumed later.")
                .Get()),
        dropped_puts(
            registry
                ->AddCounter(
                    "oscarkv_attention_dropped_puts_total",
                    "Puts of finished blocks that were skipped because the store lagged behind.")
                .Get()),
        queue_depth(registry
                        ->AddGauge("oscarkv_attention_queue_depth",
                                   "Sequences that wait for slots or a place in the batch.")
                        .Get()),
        queue_age(registry
                      ->AddGauge("oscarkv_attention_queue_age_seconds",
                                 "How long the oldest waiting sequence has waited.")
                      .Get()),
        running(registry
                    ->AddGauge("oscarkv_attention_running_sequences",
                               "Sequences being fetched, recomputed or decoded.")
                    .Get()),
        batch_size(registry
                       ->AddHistogram("oscarkv_attention_batch_size", "Sequences in a decode step.",
                                      {1, 2, 4, 8, 16, 32, 64, 128, 256})
                       .GetHistogram()),
        step_seconds(registry
                         ->AddHistogram("oscarkv_attention_step_seconds",
                                        "Time of a decode step, sampling included.",
                                        LatencySecondsBounds())
                         .GetHistogram()),
        load_part(registry->AddHistogram(
            "oscarkv_attention_load_seconds",
            "Parts of the time before the first decode step: queue, fetch, recompute.",
            LatencySecondsBounds(), {"part"})) {}

  MetricFamily& requests;
  Metric& tokens;
  Metric& recomputed_tokens;
  Metric& preemptions;
  Metric& dropped_puts;
  Metric& queue_depth;
  Metric& queue_age;
  Metric& running;
  Histogram& batch_size;
  Histogram& step_seconds;
  MetricFamily& load_part;
};

}  // namespace oscarkv
