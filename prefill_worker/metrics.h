// Metrics of the prefill worker.
#pragma once

#include "common/metrics.h"

namespace oscarkv {

struct PrefillMetrics {
  explicit PrefillMetrics(MetricRegistry* registry)
      : requests(registry->AddCounter("oscarkv_prefill_requests_total",
                                      "Prompts that ended, by status code.", {"code"})),
        tokens(registry->AddCounter(
            "oscarkv_prefill_tokens_total",
            "Prompt tokens by where their KV came from: computed, or cached in the store.",
            {"source"})),
        computed(tokens.With({"computed"})),
        cached(tokens.With({"cached"})),
        blocks_not_stored(
            registry
                ->AddCounter("oscarkv_prefill_blocks_not_stored_total",
                             "Blocks that the store refused or lost; the request went on without.")
                .Get()),
        window_misses(
            registry
                ->AddCounter(
                    "oscarkv_prefill_window_misses_total",
                    "Prefix hits whose bf16 window was not stored any more: it was recomputed.")
                .Get()),
        prefix_tokens(registry->AddCounter(
            "oscarkv_prefill_prefix_tokens_total",
            "Prompt tokens that the store was found to hold, by what became of it: fetched; chosen "
            "(computed, which was expected to be faster), late (computed, a get took too long), "
            "lost (computed, the store did not have it any more).",
            {"fate"})),
        fetch_rate(registry->AddGauge(
            "oscarkv_prefill_fetch_bytes_per_second",
            "What the last get of a prefix moved, by the lanes that it used.", {"lane"})),
        compute_rate(registry
                         ->AddGauge("oscarkv_prefill_compute_tokens_per_second",
                                    "Tokens of the last chunk by the time it was computed in.")
                         .Get()),
        queue_depth(
            registry->AddGauge("oscarkv_prefill_queue_depth", "Prompts that wait for their turn.")
                .Get()),
        queue_age(registry
                      ->AddGauge("oscarkv_prefill_queue_age_seconds",
                                 "How long the oldest waiting prompt has waited.")
                      .Get()),
        running(registry
                    ->AddGauge("oscarkv_prefill_running_prompts",
                               "Prompts being looked up, fetched, computed or stored.")
                    .Get()),
        ttft_part(registry->AddHistogram(
            "oscarkv_prefill_ttft_part_seconds",
            "Parts of the time to the first token: queue, fetch (lookup and transfer of a cached "
            "prefix), compute, store (what the puts took beyond the compute).",
            LatencySecondsBounds(), {"part"})),
        chunk_seconds(registry
                          ->AddHistogram("oscarkv_prefill_chunk_seconds",
                                         "Time to compute one chunk of a prompt.",
                                         LatencySecondsBounds())
                          .GetHistogram()) {}

  MetricFamily& requests;
  MetricFamily& tokens;
  Metric& computed;
  Metric& cached;
  Metric& blocks_not_stored;
  Metric& window_misses;
  MetricFamily& prefix_tokens;  // {fate}
  MetricFamily& fetch_rate;     // {lane}
  Metric& compute_rate;
  Metric& queue_depth;
  Metric& queue_age;
  Metric& running;
  MetricFamily& ttft_part;
  Histogram& chunk_seconds;
};

}  // namespace oscarkv
