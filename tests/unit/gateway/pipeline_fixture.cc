#include "tests/unit/gateway/pipeline_fixture.h"

#include <utility>

namespace oscarkv::gateway {
namespace {

// A status of its own: ThreadSanitizer does not see the atomic counts inside Debian's abseil, which
// copies would share.
absl::Status Copy(const absl::Status& status) {
  return absl::Status(status.code(), std::string(status.message()));
}

Time Patience() {
  return SteadyClock::Get()->Now() + kTestPatience;
}

}  // namespace

void RecordingSink::Accepted(const std::string& request_id) {
  MutexLock lock(mu_);
  EXPECT_TRUE(id_.empty() && outputs_.empty() && !finished_);
  id_ = request_id;
}

void RecordingSink::Write(GenerateOutput output) {
  MutexLock lock(mu_);
  EXPECT_FALSE(finished_);
  EXPECT_FALSE(id_.empty());
  EXPECT_EQ(output.finish != FinishReason::kNone, output.usage.has_value());
  outputs_.push_back(std::move(output));
  changed_.NotifyAll();
}

void RecordingSink::Finish(const absl::Status& status) {
  MutexLock lock(mu_);
  EXPECT_FALSE(finished_);
  // A good answer ends with its usage, a bad one has none.
  EXPECT_EQ(status.ok(), !outputs_.empty() && outputs_.back().usage.has_value());
  finished_ = true;
  status_ = Copy(status);
  changed_.NotifyAll();
}

absl::Status RecordingSink::WaitFinished() const {
  const Time until = Patience();
  MutexLock lock(mu_);
  while (!finished_ && changed_.WaitUntil(mu_, until)) {
  }
  EXPECT_TRUE(finished_) << "the request did not end";
  return finished_ ? status_ : absl::UnknownError("not finished");
}

void RecordingSink::WaitOutputs(size_t n) const {
  const Time until = Patience();
  MutexLock lock(mu_);
  while (outputs_.size() < n && changed_.WaitUntil(mu_, until)) {
  }
  EXPECT_GE(outputs_.size(), n);
}

bool RecordingSink::finished() const {
  MutexLock lock(mu_);
  return finished_;
}

std::string RecordingSink::id() const {
  MutexLock lock(mu_);
  return id_;
}

std::string RecordingSink::text() const {
  MutexLock lock(mu_);
  std::string text;
  for (const GenerateOutput& o : outputs_) text += o.text;
  return text;
}

std::vector<int32_t> RecordingSink::tokens() const {
  MutexLock lock(mu_);
  std::vector<int32_t> tokens;
  for (const GenerateOutput& o : outputs_) {
    for (const SampledToken& t : o.tokens) tokens.push_back(t.token);
  }
  return tokens;
}

size_t RecordingSink::num_outputs() const {
  MutexLock lock(mu_);
  return outputs_.size();
}

GenerateOutput RecordingSink::last() const {
  MutexLock lock(mu_);
  return outputs_.empty() ? GenerateOutput() : outputs_.back();
}

void FakeMatchStore::SetMatch(absl::StatusOr<size_t> blocks) {
  MutexLock lock(mu_);
  match_ = std::move(blocks);
}

void FakeMatchStore::Block() {
  MutexLock lock(mu_);
  block_ = true;
}

void FakeMatchStore::Unblock() {
  MutexLock lock(mu_);
  block_ = false;
  changed_.NotifyAll();
}

void FakeMatchStore::WaitBlocked() const {
  const Time until = Patience();
  MutexLock lock(mu_);
  while (!blocked_ && changed_.WaitUntil(mu_, until)) {
  }
  EXPECT_TRUE(blocked_) << "nobody asked the store";
}

std::vector<BlockKey> FakeMatchStore::last_chain() const {
  MutexLock lock(mu_);
  return chain_;
}

Time FakeMatchStore::last_deadline() const {
  MutexLock lock(mu_);
  return deadline_;
}

absl::StatusOr<size_t> FakeMatchStore::Match(absl::Span<const BlockKey> chain, Time deadline) {
  MutexLock lock(mu_);
  chain_.assign(chain.begin(), chain.end());
  deadline_ = deadline;
  while (block_) {
    blocked_ = true;
    changed_.NotifyAll();
    changed_.Wait(mu_);
  }
  blocked_ = false;
  if (!match_.ok()) return Copy(match_.status());
  return *match_;
}

std::vector<bool> FakeMatchStore::Exists(absl::Span<const BlockKey> keys,
                                         absl::Span<const BlockKey>, Time) {
  ADD_FAILURE() << "the gateway only matches";
  return std::vector<bool>(keys.size());
}

std::vector<absl::Status> FakeMatchStore::Get(absl::Span<const GetRequest> requests, Time,
                                              TransferTotals*) {
  ADD_FAILURE() << "the gateway only matches";
  return std::vector<absl::Status>(requests.size(), absl::UnimplementedError("fake"));
}

absl::StatusOr<std::unique_ptr<PutBatch>> FakeMatchStore::StartPut(absl::Span<const BlockSpec>,
                                                                   Time) {
  ADD_FAILURE() << "the gateway only matches";
  return absl::UnimplementedError("fake");
}

absl::Status FakeMatchStore::Erase(absl::Span<const BlockKey>, absl::Span<const BlockKey>, Time) {
  ADD_FAILURE() << "the gateway only matches";
  return absl::UnimplementedError("fake");
}

std::vector<KvNodeStats> FakeMatchStore::Stats(Time) {
  KvNodeStats node;
  node.node = "store:1";
  node.reachable = true;
  node.zone = "east";
  node.capacity_bytes = 1000;
  node.used_bytes = 600;
  node.kind_bytes[static_cast<size_t>(BlockKind::kBf16) - 1] = 200;
  node.hits = 5;
  return {node};
}

absl::StatusOr<size_t> FirstRouter::PickPrefill(const ClusterSnapshot& cluster,
                                                const RouteRequest& request) const {
  if (cluster.prefill.empty()) return absl::UnavailableError("no prefill worker is available");
  return cluster.prefill[0].index;
}

absl::StatusOr<size_t> FirstRouter::PickAttention(const ClusterSnapshot& cluster,
                                                  const RouteRequest& request) const {
  if (cluster.attention.empty()) return absl::UnavailableError("no attention worker is available");
  return cluster.attention[0].index;
}

PipelineTest::PipelineTest(const PipelineSetup& setup) {
  std::vector<std::unique_ptr<PrefillStub>> prefill;
  std::vector<std::unique_ptr<AttentionStub>> attention;
  WorkerInfo info = FakeInfo(WorkerRole::kPrefill);
  info.max_context = setup.max_context;
  for (int i = 0; i < setup.prefill; ++i) {
    auto stub = std::make_unique<FakePrefillStub>("p" + std::to_string(i), info);
    prefill_.push_back(stub.get());
    prefill.push_back(std::move(stub));
  }
  info.role = "attention";
  for (int i = 0; i < setup.attention; ++i) {
    auto stub = std::make_unique<FakeAttentionStub>("a" + std::to_string(i), info);
    attention_.push_back(stub.get());
    attention.push_back(std::move(stub));
  }
  workers_ = std::make_unique<WorkerSet>(WorkerSetOptions{}, std::move(prefill),
                                         std::move(attention), &metrics_, &clock_);
  workers_->Poll();
  executor_ = std::make_unique<TaskPool>(2, "executor");
  PipelineOptions options;
  options.admission = setup.admission;
  options.model = {32768, 8192};
  options.eos_tokens = {kEos};
  options.resume_wait = setup.resume_wait;
  pipeline_ = std::make_unique<RequestPipeline>(
      options,
      PipelineDeps{&tokenizer(),
                   [this](const std::string&) {
                     return std::shared_ptr<KvClient>(std::shared_ptr<void>(), &store_);
                   },
                   &quota_, workers_.get(), &router_, executor_.get(), &metrics_, &clock_},
      "test");
}

PipelineTest::~PipelineTest() {
  store_.Unblock();
  pipeline_->Shutdown(Time{});
  executor_.reset();
  workers_.reset();
}

const Tokenizer& PipelineTest::tokenizer() {
  static const Tokenizer* const tokenizer = Tokenizer::Load("models/reference").value().release();
  return *tokenizer;
}

std::vector<int32_t> PipelineTest::Encode(const std::string& text) {
  return tokenizer().Encode(text).value();
}

int32_t PipelineTest::ByteToken(char byte) {
  for (int32_t id = 0; id < tokenizer().vocab_size(); ++id) {
    if (tokenizer().TokenBytes(id) == std::string(1, byte)) return id;
  }
  ADD_FAILURE() << "no token for byte " << static_cast<int>(byte);
  return -1;
}

GenerateInput PipelineTest::Prompt(const std::string& prompt, uint32_t max_tokens) {
  GenerateInput input;
  input.prompt = prompt;
  input.max_tokens = max_tokens;
  return input;
}

PrefillResult PipelineTest::FirstToken(int32_t token, uint32_t cached) {
  PrefillResult result;
  result.first_token.token = token;
  result.cached_tokens = cached;
  return result;
}

std::shared_ptr<Request> PipelineTest::Start(GenerateInput input, Duration deadline) {
  return pipeline_->Start(std::move(input), clock_.Now() + deadline, &sink_);
}

std::shared_ptr<FakeDecode> PipelineTest::StartDecoding(GenerateInput input, int32_t first) {
  Start(std::move(input));
  const auto prefill = prefill_[0]->WaitForCall(0);
  if (prefill == nullptr) return nullptr;
  prefill->Reply(FirstToken(first));
  return attention_[0]->WaitForCall(0);
}

void PipelineTest::ExpectIdle() {
  EXPECT_EQ(pipeline_->running(), 0);
  EXPECT_EQ(pipeline_->waiting(), 0);
  const ClusterSnapshot all = workers_->Snapshot(FakeInfo(WorkerRole::kPrefill).name_space, {}, {});
  for (const auto* list : {&all.prefill, &all.attention}) {
    for (const WorkerLoad& w : *list) {
      EXPECT_EQ(w.in_flight, 0u) << w.endpoint;
      EXPECT_EQ(w.in_flight_tokens, 0u) << w.endpoint;
    }
  }
}

}  // namespace oscarkv::gateway
