// An attention worker under test, for the tests of its engine.
#pragma once

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "tests/unit/worker/harness.h"

namespace oscarkv {

// An attention worker over a store that a prefill worker filled.
class AttentionEngineTest : public testing::Test {
 protected:
  ~AttentionEngineTest() override {
    if (worker_ != nullptr) Stop();
    EXPECT_THAT(store_.violations(), testing::IsEmpty());
    EXPECT_EQ(store_.open_reservations(), 0);
  }
  AttentionWorkerUnderTest& Worker(AttentionEngineOptions options = {}, int pages = 64,
                                   int blocks = 64) {
    if (worker_ == nullptr) {
      worker_ = std::make_unique<AttentionWorkerUnderTest>(model_, &store_, options, pages, blocks,
                                                           &clock_);
    }
    return *worker_;
  }
  void Stop() {
    worker_->engine.Shutdown(Duration(0));
    EXPECT_TRUE(worker_->parts.AllFree());
    EXPECT_EQ(worker_->engine.load().running, 0);
    EXPECT_EQ(worker_->engine.load().waiting, 0);
    worker_.reset();
  }
  // Puts a prompt's blocks; returns prompt and first token.
  std::vector<int32_t> Prefill(std::vector<int32_t> prompt) {
    PrefillWorkerUnderTest worker(model_, &store_, {}, 128, 128, &clock_);
    auto result = worker.Run(prompt);
    EXPECT_TRUE(result.ok()) << result.status();
    prompt.push_back(result->first_token.token);
    return prompt;
  }
  std::vector<int32_t> Expected(const std::vector<int32_t>& tokens, int count) {
    return ExpectedTokens(model_, tokens, count);
  }
  // Decodes `more` tokens behind `tokens`, checks them; returns the result.
  DecodeResult Decode(const std::vector<int32_t>& tokens, int more) {
    DecodeOutcome outcome = Worker().Run(tokens, more + 1);
    EXPECT_TRUE(outcome.status.ok()) << outcome.status;
    EXPECT_EQ(outcome.tokens, Expected(tokens, more));
    return outcome.result;
  }
  std::vector<BlockKey> Chain(const std::vector<int32_t>& tokens) {
    return ChainKeys(Worker().parts.io.NameSpace(""), tokens);
  }
  BlockKey Partial(const std::vector<int32_t>& tokens) {
    const auto chain = Chain(tokens);
    const auto rows = absl::MakeConstSpan(tokens).subspan(chain.size() * 64,
                                                          tokens.size() - 1 - chain.size() * 64);
    return PartialKey(Worker().parts.io.NameSpace(""), chain.empty() ? BlockKey{} : chain.back(),
                      rows);
  }

  ChainRunnerOptions model_;
  FakeClock clock_;
  FakeKvStore store_{&clock_};
  std::unique_ptr<AttentionWorkerUnderTest> worker_;
};

}  // namespace oscarkv
