#include "gateway/worker_set.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "tests/fakes/fake_worker_stubs.h"

namespace oscarkv::gateway {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

WorkerState State(WorkerRole role, const std::string& endpoint) {
  WorkerState state;
  state.role = role;
  state.endpoint = endpoint;
  state.info = FakeInfo(role);
  return state;
}

// Workers a, b (prefill) and c, d (attention) that agree, changed by the case.
struct AgreeCase {
  const char* name;
  std::function<void(std::vector<WorkerState>*)> change;
  std::vector<int> refused;  // indices
  int reference;
  std::vector<const char*> says;  // of the first refused one
};

const AgreeCase kAgree[] = {
    {"All", [](auto* w) {}, {}, 0, {}},
    {"OneModelDiffers",
     [](auto* w) { (*w)[3].info.model_fingerprint = std::string(32, 0x77); },
     {3},
     0,
     {"attention worker d", "model fingerprint 7777", "prefill worker a", "1111"}},
    {"OneCodecDiffers",
     [](auto* w) {
       (*w)[0].info.codec_fingerprint = std::string(32, 0x33);
       (*w)[0].info.profile = "bf16";
     },
     {0},
     1,
     {"prefill worker a", "codec fingerprint 3333", "profile bf16", "prefill worker b", "2222"}},
    {"NamespaceDiffers",
     [](auto* w) { (*w)[2].info.name_space = std::string(32, 0x55); },
     {2},
     0,
     {"namespace 5555"}},
    {"HistoryDiffers",
     [](auto* w) { (*w)[2].info.prefill_history = "canonical"; },
     {2},
     0,
     {"prefill history canonical", "exact"}},
    {"DrawGoesToTheFirst",
     [](auto* w) {
       (*w)[0].info.model_fingerprint = (*w)[1].info.model_fingerprint = std::string(32, 0x77);
     },
     {2, 3},
     0,
     {"attention worker c", "1111", "7777"}},
    {"UnreachableHasNoVote",
     [](auto* w) {
       (*w)[0].info.model_fingerprint = (*w)[1].info.model_fingerprint = std::string(32, 0x77);
       (*w)[0].status = absl::UnavailableError("gone");
     },
     {1},
     2,
     {"prefill worker b"}},
    {"WrongRole",
     [](auto* w) { (*w)[1].info.role = "attention"; },
     {1},
     0,
     {"prefill worker b", "\"attention\"", "\"prefill\""}},
    {"OtherVocabulary",
     [](auto* w) { (*w)[1].info.vocab_size = 99; },
     {1},
     0,
     {"vocabulary of 99", "8192"}},
    {"BrokenNamespace",
     [](auto* w) { (*w)[1].info.name_space = "short"; },
     {1},
     0,
     {"namespace of 5 bytes", "32"}},
    {"NoContext", [](auto* w) { (*w)[1].info.max_context = 0; }, {1}, 0, {"context of 0"}},
    {"NobodyAnswers",
     [](auto* w) {
       for (auto& s : *w) s.status = absl::UnavailableError("gone");
     },
     {},
     -1,
     {}},
};

TEST(Agree, Cases) {
  for (const AgreeCase& c : kAgree) {
    SCOPED_TRACE(c.name);
    std::vector<WorkerState> workers = {
        State(WorkerRole::kPrefill, "a"), State(WorkerRole::kPrefill, "b"),
        State(WorkerRole::kAttention, "c"), State(WorkerRole::kAttention, "d")};
    c.change(&workers);
    const Agreement agreement = Agree(workers, 8192);
    EXPECT_EQ(agreement.reference, c.reference);
    std::vector<int> refused;
    for (size_t i = 0; i < workers.size(); ++i) {
      if (absl::IsFailedPrecondition(agreement.verdicts[i])) refused.push_back(static_cast<int>(i));
      if (absl::IsUnavailable(workers[i].status)) {
        EXPECT_EQ(agreement.verdicts[i], workers[i].status);
      }
    }
    EXPECT_EQ(refused, c.refused);
    for (const char* text : c.says) {
      EXPECT_THAT(agreement.verdicts[refused.front()].message(), HasSubstr(text));
    }
  }
}

class WorkerSetTest : public ::testing::Test {
 protected:
  WorkerSetTest() {
    std::vector<std::unique_ptr<PrefillStub>> prefill;
    std::vector<std::unique_ptr<AttentionStub>> attention;
    for (int i = 0; i < 2; ++i) {
      prefill.push_back(std::make_unique<FakePrefillStub>("p" + std::to_string(i),
                                                          FakeInfo(WorkerRole::kPrefill)));
      prefill_.push_back(static_cast<FakePrefillStub*>(prefill.back().get()));
      attention.push_back(std::make_unique<FakeAttentionStub>("a" + std::to_string(i),
                                                              FakeInfo(WorkerRole::kAttention)));
      attention_.push_back(static_cast<FakeAttentionStub*>(attention.back().get()));
    }
    WorkerSetOptions options;
    options.vocab_size = 8192;
    set_ = std::make_unique<WorkerSet>(options, std::move(prefill), std::move(attention), &metrics_,
                                       &clock_);
  }
  void NextPoll() {
    clock_.Advance(std::chrono::seconds(1));
    set_->Poll();
  }
  ClusterSnapshot Snapshot(std::vector<size_t> without_prefill = {},
                           std::vector<size_t> without_attention = {}) {
    return set_->Snapshot(FakeInfo(WorkerRole::kPrefill).name_space, without_prefill,
                          without_attention);
  }
  double Up(const char* role, const char* endpoint) {
    return metrics_.worker_up.With({role, endpoint}).value();
  }

  FakeClock clock_;
  MetricRegistry registry_;
  GatewayMetrics metrics_{&registry_};
  std::vector<FakePrefillStub*> prefill_;
  std::vector<FakeAttentionStub*> attention_;
  std::unique_ptr<WorkerSet> set_;
};

TEST_F(WorkerSetTest, NothingIsUsableBeforeTheFirstAnswer) {
  EXPECT_FALSE(set_->routable());
  EXPECT_EQ(set_->model(), nullptr);
  EXPECT_THAT(Snapshot().prefill, IsEmpty());
  EXPECT_THAT(set_->Explain(), HasSubstr("attention worker a1: has not answered yet"));
  set_->Poll();
  EXPECT_TRUE(set_->routable());
  EXPECT_THAT(Snapshot().prefill, SizeIs(2));
  EXPECT_THAT(Snapshot().attention, SizeIs(2));
  EXPECT_EQ(set_->Explain(), "");
  EXPECT_EQ(Up("prefill", "p0"), 1);
}

TEST_F(WorkerSetTest, PollsAtItsInterval) {
  set_->Poll();
  set_->Poll();
  EXPECT_EQ(prefill_[0]->info_calls(), 1);
  clock_.Advance(std::chrono::milliseconds(999));
  set_->Poll();
  EXPECT_EQ(prefill_[0]->info_calls(), 1);
  clock_.Advance(std::chrono::milliseconds(1));
  set_->Poll();
  EXPECT_EQ(prefill_[0]->info_calls(), 2);
  set_->WaitForAnswers(SteadyClock::Get()->Now() + kTestPatience);
}

TEST_F(WorkerSetTest, SmallestContextCounts) {
  WorkerInfo info = FakeInfo(WorkerRole::kAttention);
  info.max_context = 1234;
  attention_[1]->SetInfo(info);
  set_->Poll();
  EXPECT_EQ(set_->model()->max_context, 1234u);
}

TEST_F(WorkerSetTest, RefusedWorkerIsLeftOutUntilItAgrees) {
  WorkerInfo other = FakeInfo(WorkerRole::kAttention);
  other.codec_fingerprint = std::string(32, 0x44);
  attention_[0]->SetInfo(other);
  set_->Poll();
  ASSERT_THAT(Snapshot().attention, SizeIs(1));
  EXPECT_EQ(Snapshot().attention[0].index, 1u);
  EXPECT_EQ(set_->List()[2].status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(set_->Explain(), HasSubstr("codec fingerprint 4444"));
  EXPECT_EQ(Up("attention", "a0"), 0);
  attention_[0]->SetInfo(FakeInfo(WorkerRole::kAttention));
  NextPoll();
  EXPECT_THAT(Snapshot().attention, SizeIs(2));
  EXPECT_EQ(Up("attention", "a0"), 1);
}

TEST_F(WorkerSetTest, UnreachableWorkerComesBack) {
  set_->Poll();
  prefill_[0]->SetInfo(absl::DeadlineExceededError("slow"));
  prefill_[1]->SetInfo(absl::UnavailableError("refused"));
  NextPoll();
  EXPECT_FALSE(set_->routable());
  EXPECT_NE(set_->model(), nullptr);  // the attention workers still say it
  EXPECT_THAT(set_->Explain(), HasSubstr("DEADLINE_EXCEEDED: slow"));
  EXPECT_TRUE(absl::IsUnavailable(set_->List()[0].status));
  prefill_[0]->SetInfo(FakeInfo(WorkerRole::kPrefill));
  NextPoll();
  EXPECT_TRUE(set_->routable());
}

// As when the wall clock, by which gRPC counts a call's deadline, was set back.
TEST_F(WorkerSetTest, QuestionThatNeverEndsIsGivenUp) {
  set_->Poll();
  prefill_[0]->HoldInfo();
  for (int i = 0; i < 5; ++i) NextPoll();
  EXPECT_FALSE(set_->List()[0].status.ok());
  EXPECT_THAT(set_->Explain(), HasSubstr("neither answered nor failed in time"));
  EXPECT_EQ(Up("prefill", "p0"), 0);
  EXPECT_EQ(Up("prefill", "p1"), 1);
  EXPECT_EQ(prefill_[0]->info_calls(), 3);  // asked again
  prefill_[0]->ReleaseInfo();               // two answers: of the one given up, and the last
  EXPECT_EQ(Up("prefill", "p0"), 1);
  NextPoll();
  EXPECT_EQ(Up("prefill", "p0"), 1);
  EXPECT_EQ(prefill_[0]->info_calls(), 4);
}

TEST_F(WorkerSetTest, FailedCallTakesAWorkerOutOnlyWhenItCannotBeReached) {
  set_->Poll();
  set_->ReportFailure(WorkerRole::kPrefill, 0, absl::ResourceExhaustedError("full"));
  EXPECT_THAT(Snapshot().prefill, SizeIs(2));
  set_->ReportFailure(WorkerRole::kPrefill, 0, absl::UnavailableError("socket closed"));
  ASSERT_THAT(Snapshot().prefill, SizeIs(1));
  EXPECT_EQ(Snapshot().prefill[0].index, 1u);
  EXPECT_FALSE(set_->Usable(WorkerRole::kPrefill, 0, FakeInfo(WorkerRole::kPrefill).name_space));
  EXPECT_EQ(metrics_.worker_failures.With({"prefill", "p0"}).value(), 2);
  NextPoll();
  EXPECT_THAT(Snapshot().prefill, SizeIs(2));
}

TEST_F(WorkerSetTest, SnapshotLeavesOutAndCounts) {
  WorkerInfo busy = FakeInfo(WorkerRole::kAttention);
  busy.running = 3;
  busy.waiting = 4;
  busy.pool_pages = 100;
  busy.pool_pages_free = 60;
  attention_[1]->SetInfo(busy);
  set_->Poll();
  {
    const WorkerLease a = set_->Use(WorkerRole::kAttention, 1, 500);
    WorkerLease b = set_->Use(WorkerRole::kAttention, 1, 70);
    WorkerLease c = std::move(b);
    const ClusterSnapshot snapshot = Snapshot({0}, {0});
    ASSERT_THAT(snapshot.prefill, SizeIs(1));
    EXPECT_EQ(snapshot.prefill[0].endpoint, "p1");
    ASSERT_THAT(snapshot.attention, SizeIs(1));
    const WorkerLoad& load = snapshot.attention[0];
    EXPECT_EQ(load.in_flight, 2u);
    EXPECT_EQ(load.in_flight_tokens, 570u);
    EXPECT_EQ(load.foreign, 7u);  // none of them was this gateway's when the worker was asked
    EXPECT_EQ(load.pool_pages, 100u);
    EXPECT_EQ(load.pool_pages_free, 60u);
    NextPoll();
    EXPECT_EQ(Snapshot().attention[1].foreign, 5u);
    c.Release();
    EXPECT_EQ(Snapshot().attention[1].in_flight, 1u);
    EXPECT_EQ(Snapshot().attention[1].foreign, 5u);
    c.Release();
    EXPECT_EQ(Snapshot().attention[1].in_flight, 1u);
  }
  EXPECT_EQ(Snapshot().attention[1].in_flight, 0u);
  EXPECT_EQ(Snapshot().attention[1].in_flight_tokens, 0u);
  const uint64_t sequence = Snapshot().sequence;
  EXPECT_EQ(Snapshot().sequence, sequence + 1);
  EXPECT_THAT(set_->Snapshot("another namespace", {}, {}).prefill, IsEmpty());
}

}  // namespace
}  // namespace oscarkv::gateway
