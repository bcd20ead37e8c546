// A pipeline over fake workers and a fake store, driven by a fake clock; requests of the reference
// tokenizer.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "common/mutex.h"
#include "gateway/request_pipeline.h"
#include "tests/fakes/fake_worker_stubs.h"

namespace oscarkv::gateway {

// What a client sees; also checks the sink's contract.
class RecordingSink final : public GenerateSink {
 public:
  void Accepted(const std::string& request_id) override;
  void Write(GenerateOutput output) override;
  void Finish(const absl::Status& status) override;

  // Fails the test when it does not come.
  absl::Status WaitFinished() const;
  void WaitOutputs(size_t n) const;
  bool finished() const;
  std::string id() const;
  std::string text() const;
  std::vector<int32_t> tokens() const;
  size_t num_outputs() const;
  GenerateOutput last() const;

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  std::string id_ GUARDED_BY(mu_);
  std::vector<GenerateOutput> outputs_ GUARDED_BY(mu_);
  bool finished_ GUARDED_BY(mu_) = false;
  absl::Status status_ GUARDED_BY(mu_);
};

// A store that only matches.
class FakeMatchStore final : public KvClient {
 public:
  void SetMatch(absl::StatusOr<size_t> blocks);
  void Block();  // the next Match does not return before Unblock
  void Unblock();
  void WaitBlocked() const;  // until a Match waits
  std::vector<BlockKey> last_chain() const;
  Time last_deadline() const;

  absl::StatusOr<size_t> Match(absl::Span<const BlockKey> chain, Time deadline) override;
  std::vector<bool> Exists(absl::Span<const BlockKey>, absl::Span<const BlockKey>, Time) override;
  std::vector<absl::Status> Get(absl::Span<const GetRequest>, Time, TransferTotals*) override;
  absl::StatusOr<std::unique_ptr<PutBatch>> StartPut(absl::Span<const BlockSpec>, Time) override;
  absl::Status Erase(absl::Span<const BlockKey>, absl::Span<const BlockKey>, Time) override;
  KvStoreView View() const override { return {2, "static", true, ""}; }
  std::vector<KvNodeStats> Stats(Time) override;

 private:
  mutable Mutex mu_;
  mutable CondVar changed_;
  absl::StatusOr<size_t> match_ GUARDED_BY(mu_) = size_t{0};
  std::vector<BlockKey> chain_ GUARDED_BY(mu_);
  Time deadline_ GUARDED_BY(mu_){};
  bool block_ GUARDED_BY(mu_) = false;
  bool blocked_ GUARDED_BY(mu_) = false;
};

// The first usable worker in the order of the lists.
class FirstRouter final : public Router {
 public:
  absl::StatusOr<size_t> PickPrefill(const ClusterSnapshot& cluster,
                                     const RouteRequest& request) const override;
  absl::StatusOr<size_t> PickAttention(const ClusterSnapshot& cluster,
                                       const RouteRequest& request) const override;
};

struct PipelineSetup {
  int prefill = 2;
  int attention = 2;
  AdmissionOptions admission = {.max_running = 4, .max_waiting = 4};
  uint32_t max_context = 32768;
  Duration resume_wait{0};
};

class PipelineTest : public ::testing::Test {
 protected:
  explicit PipelineTest(const PipelineSetup& setup = {});
  ~PipelineTest() override;

  static const Tokenizer& tokenizer();
  static std::vector<int32_t> Encode(const std::string& text);
  // The token that is this one byte.
  static int32_t ByteToken(char byte);
  static GenerateInput Prompt(const std::string& prompt = "Once upon a time",
                              uint32_t max_tokens = 50);
  static PrefillResult FirstToken(int32_t token, uint32_t cached = 0);

  std::shared_ptr<Request> Start(GenerateInput input, Duration deadline = std::chrono::seconds(60));
  // Starts it and answers its prefill (worker 0's first call) with `first`; returns the stream it
  // then opens.
  std::shared_ptr<FakeDecode> StartDecoding(GenerateInput input, int32_t first);
  void ExpectIdle();  // nothing is held for any request

  static constexpr int32_t kEos = 8189;
  FakeClock clock_;
  MetricRegistry registry_;
  GatewayMetrics metrics_{&registry_};
  FakeMatchStore store_;
  FirstRouter router_;
  auth::TenantLimits limits_;  // of every tenant
  TenantQuota quota_{[this](const std::string&) { return limits_; }, &clock_};
  std::vector<FakePrefillStub*> prefill_;
  std::vector<FakeAttentionStub*> attention_;
  std::unique_ptr<RequestPipeline> pipeline_;
  std::unique_ptr<WorkerSet> workers_;
  std::unique_ptr<TaskPool> executor_;
  RecordingSink sink_;
};

}  // namespace oscarkv::gateway
