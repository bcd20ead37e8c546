// Both workers over gRPC on loopback, with a fake store and model behind them.
#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include "attention_worker/attention_service.h"
#include "prefill_worker/prefill_service.h"
#include "tests/unit/worker/fake_runtime.h"
#include "tests/unit/worker/harness.h"
#include "worker/server.h"

namespace oscarkv {
namespace {

using testing::HasSubstr;

class ServicesTest : public testing::Test {
 protected:
  ServicesTest()
      : prefill_runtime_(FakeRuntime(std::make_unique<ChainRunner>(model_), &store_, &registry_)),
        attention_runtime_(FakeRuntime(std::make_unique<ChainRunner>(model_), &store_, &registry_)),
        prefill_engine_({}, prefill_runtime_->runner.get(), prefill_runtime_->io.get(),
                        prefill_runtime_->fetch_pool.get(), prefill_runtime_->putter.get(),
                        &prefill_metrics_, prefill_runtime_->metrics.get()),
        attention_engine_({}, attention_runtime_->runner.get(), attention_runtime_->io.get(),
                          attention_runtime_->fetch_pool.get(), attention_runtime_->putter.get(),
                          &attention_metrics_, attention_runtime_->metrics.get()) {
    prefill_server_ = *worker::StartServer({}, &prefill_service_);
    attention_server_ = *worker::StartServer({}, &attention_service_);
    prefill_ = v1::PrefillWorker::NewStub(Channel(prefill_server_->port()));
    attention_ = v1::AttentionWorker::NewStub(Channel(attention_server_->port()));
  }
  ~ServicesTest() override {
    prefill_engine_.Shutdown(Duration(0));
    attention_engine_.Shutdown(Duration(0));
    for (const auto* runtime : {prefill_runtime_.get(), attention_runtime_.get()}) {
      EXPECT_EQ(runtime->arena->pool().free_blocks(), 64);
      EXPECT_EQ(runtime->arena->pool().free_pages(), 64);
    }
    prefill_server_->Shutdown();
    attention_server_->Shutdown();
  }
  static std::shared_ptr<grpc::Channel> Channel(int port) {
    return grpc::CreateChannel("127.0.0.1:" + std::to_string(port),
                               grpc::InsecureChannelCredentials());
  }
  ChainRunner& Runner(worker::WorkerRuntime* runtime) {
    return static_cast<ChainRunner&>(*runtime->runner);
  }

  v1::PrefillRequest PrefillRequest(int n) {
    v1::PrefillRequest request;
    request.set_request_id("r");
    for (int32_t token : Prompt(n)) request.add_tokens(token);
    return request;
  }
  v1::DecodeRequest DecodeRequest(int n, int max_tokens) {
    v1::DecodeRequest request;
    for (int32_t token : Prompt(n)) request.add_tokens(token);
    request.set_prompt_tokens(n - 1);
    request.set_max_tokens(max_tokens);
    return request;
  }

  const ChainRunnerOptions model_;
  FakeKvStore store_{SteadyClock::Get()};
  MetricRegistry registry_;
  PrefillMetrics prefill_metrics_{&registry_};
  AttentionMetrics attention_metrics_{&registry_};
  std::unique_ptr<worker::WorkerRuntime> prefill_runtime_, attention_runtime_;
  PrefillEngine prefill_engine_;
  AttentionEngine attention_engine_;
  prefill_worker::PrefillService prefill_service_{&prefill_engine_, prefill_runtime_.get()};
  attention_worker::AttentionService attention_service_{&attention_engine_,
                                                        attention_runtime_.get()};
  std::unique_ptr<rpc::Server> prefill_server_, attention_server_;
  std::unique_ptr<v1::PrefillWorker::Stub> prefill_;
  std::unique_ptr<v1::AttentionWorker::Stub> attention_;
};

TEST_F(ServicesTest, PrefillThenDecode) {
  grpc::ClientContext prefill_context;
  v1::PrefillResponse first;
  v1::PrefillRequest request = PrefillRequest(400);
  request.mutable_sampling()->set_logprobs(3);
  const grpc::Status status = prefill_->Prefill(&prefill_context, request, &first);
  ASSERT_TRUE(status.ok()) << status.error_message();
  const auto expected = ExpectedTokens(model_, Prompt(400), 101);
  EXPECT_EQ(first.first_token().id(), expected[0]);
  EXPECT_EQ(first.first_token().top_size(), 3);
  EXPECT_LT(first.first_token().logprob(), 0);
  EXPECT_EQ(first.cached_tokens(), 0u);
  EXPECT_EQ(first.put().blocks(), 6u + 4u + 1u);
  EXPECT_THAT(first.put().lanes(), testing::ElementsAre("fake"));

  grpc::ClientContext decode_context;
  v1::DecodeRequest decode = DecodeRequest(400, 101);
  decode.add_tokens(first.first_token().id());
  decode.set_prompt_tokens(400);
  auto reader = attention_->Decode(&decode_context, decode);
  std::vector<int32_t> tokens = {expected[0]};
  v1::DecodeResponse message, last;
  while (reader->Read(&message)) {
    for (const auto& token : message.tokens()) tokens.push_back(token.id());
    EXPECT_FALSE(last.has_summary());  // nothing behind the last message
    last = message;
  }
  EXPECT_TRUE(reader->Finish().ok());
  EXPECT_EQ(tokens, expected);
  EXPECT_EQ(last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(last.summary().get().blocks(), 6u + 4u + 1u);
  EXPECT_EQ(last.summary().recomputed_tokens(), 0u);
  EXPECT_GT(last.summary().kv_bytes_bf16(), last.summary().kv_bytes_stored());
}

TEST_F(ServicesTest, BadRequestsAreInvalidArgument) {
  grpc::ClientContext a, b;
  v1::PrefillRequest request = PrefillRequest(10);
  request.set_tokens(4, 100000);
  v1::PrefillResponse response;
  grpc::Status status = prefill_->Prefill(&a, request, &response);
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("tokens[4]"));

  v1::DecodeRequest decode = DecodeRequest(10, 0);
  auto reader = attention_->Decode(&b, decode);
  v1::DecodeResponse message;
  EXPECT_FALSE(reader->Read(&message));
  status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_THAT(status.error_message(), HasSubstr("max_tokens"));
}

TEST_F(ServicesTest, CancelledCallsEndInTheEngines) {
  Gate prefill_gate, decode_gate;
  Runner(prefill_runtime_.get()).before = [&](bool, int, int) {
    prefill_gate.Wait();
    return absl::OkStatus();
  };
  Runner(attention_runtime_.get()).before = [&](bool prefill, int, int) {
    if (!prefill) decode_gate.Wait();
    return absl::OkStatus();
  };
  grpc::ClientContext prefill_context, decode_context;
  std::thread caller([&] {
    v1::PrefillResponse response;
    EXPECT_EQ(prefill_->Prefill(&prefill_context, PrefillRequest(3000), &response).error_code(),
              grpc::StatusCode::CANCELLED);
  });
  auto reader = attention_->Decode(&decode_context, DecodeRequest(20, 4000));
  prefill_gate.AwaitWaiter();
  decode_gate.AwaitWaiter();
  prefill_context.TryCancel();
  decode_context.TryCancel();
  caller.join();
  v1::DecodeResponse message;
  while (reader->Read(&message)) {
  }
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  prefill_gate.Open();
  decode_gate.Open();
  // The engines hear of it from gRPC: they end the requests long before these would end by
  // themselves.
  while (prefill_engine_.load().running + attention_engine_.load().running > 0)
    std::this_thread::yield();
  EXPECT_EQ(prefill_metrics_.requests.With({"CANCELLED"}).value() +
                prefill_metrics_.requests.With({"OK"}).value(),
            1);
  EXPECT_EQ(attention_metrics_.requests.With({"CANCELLED"}).value(), 1);
}

TEST_F(ServicesTest, DeadlineTravels) {
  grpc::ClientContext context;
  // The engine may come to it after this test's body.
  const auto gate = std::make_shared<Gate>();
  Runner(attention_runtime_.get()).before = [gate](bool, int, int) {
    gate->Wait();
    return absl::OkStatus();
  };
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(50));
  auto reader = attention_->Decode(&context, DecodeRequest(20, 4000));
  v1::DecodeResponse message;
  EXPECT_FALSE(reader->Read(&message));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  gate->Open();
}

TEST_F(ServicesTest, Info) {
  grpc::ClientContext a, b;
  v1::WorkerInfo prefill, attention;
  ASSERT_TRUE(prefill_->GetInfo(&a, {}, &prefill).ok());
  ASSERT_TRUE(attention_->GetInfo(&b, {}, &attention).ok());
  EXPECT_EQ(prefill.role(), "prefill");
  EXPECT_EQ(attention.role(), "attention");
  EXPECT_EQ(prefill.name_space(), attention.name_space());
  EXPECT_EQ(prefill.name_space().size(), 32u);
  EXPECT_EQ(prefill.model(), "fake");
  EXPECT_EQ(prefill.profile(), "oscar");
  EXPECT_EQ(prefill.vocab_size(), 199u);
  EXPECT_EQ(prefill.max_context(), 4096u);
  EXPECT_EQ(prefill.pool_pages(), 64u);
  EXPECT_EQ(prefill.kv_bytes_per_token_bf16(), model_.shape.Bf16BlockBytes() / 64);
  EXPECT_EQ(prefill.kv_bytes_per_token_stored(), model_.shape.PageBytes() / 64);
  EXPECT_EQ(prefill.prefill_history(), "exact");
}

TEST(RpcServer, AddressInUse) {
  v1::PrefillWorker::CallbackService a, b;
  auto first = worker::StartServer({}, &a);
  ASSERT_TRUE(first.ok());
  worker::WorkerOptions same;
  same.listen = "127.0.0.1:" + std::to_string((*first)->port());
  auto second = worker::StartServer(same, &b);
  EXPECT_EQ(second.status().code(), absl::StatusCode::kUnavailable);
}

}  // namespace
}  // namespace oscarkv
