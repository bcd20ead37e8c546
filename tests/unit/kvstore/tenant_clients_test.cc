#include "kvstore/client/tenant_clients.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <thread>

#include "absl/strings/str_cat.h"

namespace oscarkv {
namespace {

class NoClient final : public KvClient {
 public:
  explicit NoClient(int* alive) : alive_(alive) { ++*alive_; }
  ~NoClient() override { --*alive_; }
  absl::StatusOr<size_t> Match(absl::Span<const BlockKey>, Time) override { return 0; }
  std::vector<bool> Exists(absl::Span<const BlockKey>, absl::Span<const BlockKey>, Time) override {
    return {};
  }
  std::vector<absl::Status> Get(absl::Span<const GetRequest>, Time, TransferTotals*) override {
    return {};
  }
  absl::StatusOr<std::unique_ptr<PutBatch>> StartPut(absl::Span<const BlockSpec>, Time) override {
    return absl::UnimplementedError("");
  }
  absl::Status Erase(absl::Span<const BlockKey>, absl::Span<const BlockKey>, Time) override {
    return absl::OkStatus();
  }
  KvStoreView View() const override { return {}; }
  std::vector<KvNodeStats> Stats(Time) override { return {}; }

 private:
  int* const alive_;
};

class TenantClientsTest : public testing::Test {
 protected:
  FakeClock clock_;
  int alive_ = 0;
  std::map<std::string, int> made_;
  absl::Status failure_;
  TenantClients clients_{
      std::make_shared<NoClient>(&alive_),
      [this](const std::string& tenant) -> absl::StatusOr<std::unique_ptr<KvClient>> {
        ++made_[tenant];
        if (!failure_.ok()) return failure_;
        return std::make_unique<NoClient>(&alive_);
      },
      2, &clock_};
};

TEST_F(TenantClientsTest, OneForEachTenant) {
  EXPECT_EQ(clients_.Of("")->get(), clients_.standard());
  const auto a = *clients_.Of("a"), b = *clients_.Of("b");
  EXPECT_NE(a, b);
  EXPECT_NE(a.get(), clients_.standard());
  EXPECT_EQ(*clients_.Of("a"), a);
  EXPECT_EQ(made_["a"], 1);
}

TEST_F(TenantClientsTest, TheOneUnusedForLongestGoes) {
  clients_.Of("a").IgnoreError();
  clients_.Of("b").IgnoreError();
  clients_.Of("a").IgnoreError();
  clients_.Of("c").IgnoreError();
  EXPECT_EQ(alive_, 3);
  clients_.Of("a").IgnoreError();
  EXPECT_EQ(made_["a"], 1);
  clients_.Of("b").IgnoreError();
  EXPECT_EQ(made_["b"], 2) << "was given up for c";
}

TEST_F(TenantClientsTest, OnesInUseStay) {
  const auto a = *clients_.Of("a"), b = *clients_.Of("b");
  const auto refused = clients_.Of("c");
  EXPECT_TRUE(absl::IsResourceExhausted(refused.status()));
  EXPECT_THAT(std::string(refused.status().message()), testing::HasSubstr("tenant 'c': all 2"));
  EXPECT_TRUE(clients_.Of("").ok());
}

TEST_F(TenantClientsTest, AFailureIsRememberedForASecond) {
  failure_ = absl::UnavailableError("no node");
  EXPECT_TRUE(absl::IsUnavailable(clients_.Of("a").status()));
  EXPECT_TRUE(absl::IsUnavailable(clients_.Of("a").status()));
  EXPECT_EQ(made_["a"], 1);
  failure_ = absl::OkStatus();
  clock_.Advance(std::chrono::seconds(1));
  EXPECT_TRUE(clients_.Of("a").ok());
  EXPECT_EQ(made_["a"], 2);
}

TEST(TenantClients, ManyThreadsMakeOne) {
  int alive = 0;
  std::atomic<int> made{0};
  TenantClients clients(
      std::make_shared<NoClient>(&alive),
      [&](const std::string&) -> absl::StatusOr<std::unique_ptr<KvClient>> {
        ++made;
        return std::make_unique<NoClient>(&alive);
      },
      4);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) threads.emplace_back([&] { EXPECT_TRUE(clients.Of("t").ok()); });
  for (std::thread& t : threads) t.join();
  EXPECT_EQ(made, 1);
}

TEST(TenantClients, WithoutAStoreThereIsNone) {
  TenantClients clients(nullptr, nullptr, 4);
  EXPECT_EQ(*clients.Of("t"), nullptr);
}

}  // namespace
}  // namespace oscarkv
