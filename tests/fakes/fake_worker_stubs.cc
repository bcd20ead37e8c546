#include "tests/fakes/fake_worker_stubs.h"

#include "kvstore/block_key.h"

namespace oscarkv::gateway {

void FakeCall::Cancel() {
  {
    MutexLock lock(mu_);
    cancelled_ = true;
  }
  changed_.NotifyAll();
  if (TakeEnd()) EndCancelled();
}

bool FakeCall::cancelled() const {
  MutexLock lock(mu_);
  return cancelled_;
}

bool FakeCall::ended() const {
  MutexLock lock(mu_);
  return ended_;
}

bool FakeCall::WaitCancelled() const {
  const Time until = SteadyClock::Get()->Now() + kTestPatience;
  MutexLock lock(mu_);
  while (!cancelled_ && changed_.WaitUntil(mu_, until)) {
  }
  return cancelled_;
}

bool FakeCall::TakeEnd() {
  MutexLock lock(mu_);
  return !std::exchange(ended_, true);
}

void FakePrefill::Reply(absl::StatusOr<PrefillResult> result) {
  if (TakeEnd()) std::exchange(done_, nullptr)(std::move(result));
}

void FakeDecode::SendTokens(const std::vector<int32_t>& tokens, FinishReason finish) {
  DecodeEvent event;
  for (int32_t token : tokens) event.tokens.push_back({token, -0.5f, {}});
  event.finish = finish;
  Send(std::move(event));
}

void FakeDecode::End(const absl::Status& status) {
  if (TakeEnd()) std::exchange(done_, nullptr)(status);
}

std::shared_ptr<WorkerCall> FakePrefillStub::Prefill(PrefillCall call, Time deadline,
                                                     PrefillDone done) {
  auto fake = std::make_shared<FakePrefill>(std::move(call), deadline, std::move(done));
  Add(fake);
  return fake;
}

std::shared_ptr<WorkerCall> FakeAttentionStub::Decode(DecodeCall call, Time deadline,
                                                      DecodeNext next, DecodeDone done) {
  auto fake =
      std::make_shared<FakeDecode>(std::move(call), deadline, std::move(next), std::move(done));
  Add(fake);
  return fake;
}

WorkerInfo FakeInfo(WorkerRole role) {
  NamespaceFields fields;
  fields.model_fingerprint.fill(0x11);
  fields.codec_fingerprint.fill(0x22);
  fields.prefill_history = "exact";
  const Sha256Digest name_space = NamespaceDigest(fields);
  WorkerInfo info;
  info.role = WorkerRoleName(role);
  info.model = "reference";
  info.model_fingerprint = std::string(32, 0x11);
  info.codec_fingerprint = std::string(32, 0x22);
  info.name_space = std::string(name_space.begin(), name_space.end());
  info.profile = "oscar";
  info.codec = "oscar, 2 bits";
  info.max_context = 32768;
  info.vocab_size = 8192;
  info.kv_bytes_per_token_bf16 = 8192;
  info.kv_bytes_per_token_stored = 1152;
  info.prefill_history = "exact";
  return info;
}

}  // namespace oscarkv::gateway
