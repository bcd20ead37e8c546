// The gateway's gRPC surface over real channels; what happens inside is tested without them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <grpcpp/generic/generic_stub.h>

#include "gateway/gateway_server.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "model/tokenizer.h"
#include "oscarkv/v1/gateway.grpc.pb.h"
#include "tests/fakes/fake_worker_server.h"
#include "tests/unit/gateway/pipeline_fixture.h"

namespace oscarkv::gateway {
namespace {

using ::testing::HasSubstr;

FakeWorkerScript Script() {
  FakeWorkerScript script;
  script.info = FakeInfo(WorkerRole::kPrefill);
  return script;
}

class ServerTest : public ::testing::Test {
 protected:
  ServerTest() : tokenizer_(Tokenizer::Load("models/reference").value()) {
    prefill_script_.first_token = tokenizer_->Encode("Hello").value()[0];
    decode_script_.decode_tokens = tokenizer_->Encode(" there, world").value();
  }

  void StartAll() {
    prefill_ = std::make_unique<FakeWorkerServer>(prefill_script_);
    attention_ = std::make_unique<FakeWorkerServer>(decode_script_);
    options_.listen = "127.0.0.1:0";
    options_.model = "models/reference";
    options_.prefill = {prefill_->endpoint()};
    options_.attention = {attention_->endpoint()};
    auto server = GatewayServer::Start(options_, &registry_, std::make_unique<FakeMatchStore>());
    ASSERT_TRUE(server.ok()) << server.status();
    server_ = *std::move(server);
    channel_ = grpc::CreateChannel("127.0.0.1:" + std::to_string(server_->port()),
                                   grpc::InsecureChannelCredentials());
    stub_ = v1::Gateway::NewStub(channel_);
  }
  static void SetDeadline(grpc::ClientContext* context) {
    context->set_deadline(std::chrono::system_clock::now() + kTestPatience);
  }
  static v1::GenerateRequest Request(const std::string& prompt) {
    v1::GenerateRequest request;
    request.set_prompt(prompt);
    request.set_max_tokens(50);
    return request;
  }
  // All of an answer: text, last message, status.
  struct Answer {
    std::string text;
    v1::GenerateResponse first, last;
    grpc::Status status;
  };
  Answer Generate(const v1::GenerateRequest& request) {
    grpc::ClientContext context;
    SetDeadline(&context);
    auto reader = stub_->Generate(&context, request);
    Answer answer;
    for (bool first = true; reader->Read(&answer.last); first = false) {
      if (first) answer.first = answer.last;
      answer.text += answer.last.text();
    }
    answer.status = reader->Finish();
    return answer;
  }
  std::string AnswerText() const {
    return tokenizer_->Decode({prefill_script_.first_token}) +
           tokenizer_->Decode(decode_script_.decode_tokens);
  }
  // Reads until all that the fake workers say is there.
  void ReadText(grpc::ClientReader<v1::GenerateResponse>* reader) {
    std::string text;
    v1::GenerateResponse response;
    while (text.size() < AnswerText().size() && reader->Read(&response)) text += response.text();
    EXPECT_EQ(text, AnswerText());
  }

  const std::unique_ptr<Tokenizer> tokenizer_;
  FakeWorkerScript prefill_script_ = Script(), decode_script_ = Script();
  MetricRegistry registry_;
  GatewayOptions options_;
  std::unique_ptr<FakeWorkerServer> prefill_, attention_;
  std::unique_ptr<GatewayServer> server_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<v1::Gateway::Stub> stub_;
};

TEST_F(ServerTest, StreamsAnAnswer) {
  StartAll();
  v1::GenerateRequest request = Request("Say hello");
  request.set_request_id("mine");
  const Answer answer = Generate(request);
  ASSERT_TRUE(answer.status.ok()) << answer.status.error_message();
  EXPECT_EQ(answer.first.request_id(), "mine");
  EXPECT_EQ(answer.text, AnswerText());
  EXPECT_EQ(answer.last.finish_reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(answer.last.usage().prompt_tokens(), tokenizer_->Encode("Say hello")->size());
  EXPECT_EQ(answer.last.usage().generated_tokens(), 1 + decode_script_.decode_tokens.size());
  EXPECT_EQ(answer.last.usage().kv_bytes_bf16(), 80u);
  EXPECT_EQ(answer.last.usage().prefill_worker(), prefill_->endpoint());
  EXPECT_EQ(answer.last.usage().attention_worker(), attention_->endpoint());
}

TEST_F(ServerTest, RefusalsNameTheReason) {
  StartAll();
  struct {
    const char* name;
    v1::GenerateRequest request;
    const char* says;
  } cases[] = {
      {"Empty", Request(""), "prompt is empty"},
      {"Utf8", Request("ab\xff"), "prompt is not UTF-8 at byte 2 (0xff)"},
      {"Temperature", Request("x"), "temperature"},
      {"TooLong", Request("x"), "max_tokens 40000"},
  };
  cases[2].request.mutable_sampling()->set_temperature(-1);
  cases[3].request.set_max_tokens(40000);
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    const Answer answer = Generate(c.request);
    EXPECT_EQ(answer.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(answer.status.error_message(), HasSubstr(c.says));
  }
}

TEST_F(ServerTest, MessagesBeyondTheLimitAreRefused) {
  options_.max_message_bytes = 64 << 10;
  StartAll();
  EXPECT_EQ(Generate(Request(std::string(100'000, 'x'))).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Generate(Request("x")).status.ok());
}

TEST_F(ServerTest, CancelReachesTheDecodingWorker) {
  decode_script_.hang_decode = true;
  StartAll();
  grpc::ClientContext context;
  SetDeadline(&context);
  auto reader = stub_->Generate(&context, Request("Say hello"));
  ReadText(reader.get());
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(attention_->WaitCancelled(1));
}

TEST_F(ServerTest, CancelReachesThePrefillingWorker) {
  prefill_script_.hang_prefill = true;
  StartAll();
  grpc::ClientContext context;
  SetDeadline(&context);
  auto reader = stub_->Generate(&context, Request("Say hello"));
  v1::GenerateResponse started;
  ASSERT_TRUE(reader->Read(&started));
  EXPECT_NE(started.request_id(), "");
  while (prefill_->prefills() == 0) std::this_thread::yield();
  context.TryCancel();
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::CANCELLED);
  EXPECT_TRUE(prefill_->WaitCancelled(1));
}

TEST_F(ServerTest, ClientsDeadlineReachesTheWorker) {
  prefill_script_.hang_prefill = true;
  StartAll();
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(300));
  auto reader = stub_->Generate(&context, Request("Say hello"));
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  // It may have passed before the prefill began.
  if (prefill_->prefills() > 0) {
    EXPECT_TRUE(prefill_->WaitCancelled(1));
  }
}

TEST_F(ServerTest, AttentionWorkerThatDiesEndsTheStream) {
  decode_script_.hang_decode = true;
  options_.resume_wait = Duration{0};  // nobody will come back
  StartAll();
  grpc::ClientContext context;
  SetDeadline(&context);
  auto reader = stub_->Generate(&context, Request("Say hello"));
  ReadText(reader.get());
  attention_->Kill();
  const grpc::Status status = reader->Finish();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), HasSubstr(attention_->endpoint()));
}

TEST_F(ServerTest, ShutdownEndsStreams) {
  decode_script_.hang_decode = true;
  StartAll();
  grpc::ClientContext context;
  SetDeadline(&context);
  auto reader = stub_->Generate(&context, Request("Say hello"));
  ReadText(reader.get());
  server_->Shutdown(Duration{0});
  EXPECT_EQ(reader->Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_TRUE(attention_->WaitCancelled(1));
}

TEST_F(ServerTest, TokenizeModelAndStatus) {
  StartAll();
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::TokenizeRequest request;
    request.set_text("Once upon a time");
    v1::TokenizeResponse response;
    ASSERT_TRUE(stub_->Tokenize(&context, request, &response).ok());
    EXPECT_EQ(std::vector<int32_t>(response.tokens().begin(), response.tokens().end()),
              tokenizer_->Encode("Once upon a time").value());
  }
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::TokenizeRequest request;
    request.set_text("\xff");
    v1::TokenizeResponse response;
    const grpc::Status status = stub_->Tokenize(&context, request, &response);
    EXPECT_EQ(status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
    EXPECT_THAT(status.error_message(), HasSubstr("text is not UTF-8 at byte 0"));
  }
  {
    grpc::ClientContext context;
    SetDeadline(&context);
    v1::GetModelResponse response;
    ASSERT_TRUE(stub_->GetModel(&context, v1::GetModelRequest(), &response).ok());
    EXPECT_EQ(response.name(), "reference");
    EXPECT_EQ(response.profile(), "oscar");
    EXPECT_EQ(response.vocab_size(), 8192u);
    EXPECT_EQ(response.kv_bytes_per_token_stored(), 1152u);
  }
  EXPECT_TRUE(Generate(Request("Hi")).status.ok());
  grpc::ClientContext context;
  SetDeadline(&context);
  v1::GetStatusResponse response;
  ASSERT_TRUE(stub_->GetStatus(&context, v1::GetStatusRequest(), &response).ok());
  ASSERT_EQ(response.workers_size(), 2);
  EXPECT_TRUE(response.workers(0).reachable());
  EXPECT_EQ(response.workers(0).info().role(), "prefill");
  EXPECT_EQ(response.workers(1).endpoint(), attention_->endpoint());
  ASSERT_EQ(response.nodes_size(), 1);
  EXPECT_EQ(response.nodes(0).endpoint(), "store:1");
  EXPECT_EQ(response.nodes(0).bf16_bytes(), 200u);
  EXPECT_EQ(response.nodes(0).zone(), "east");
  EXPECT_EQ(response.replicas(), 2u);
  EXPECT_EQ(response.membership(), "static");
  EXPECT_EQ(response.requests(), 1u);
  EXPECT_EQ(response.generated_tokens(), 1 + decode_script_.decode_tokens.size());
  EXPECT_EQ(response.running(), 0u);
}

TEST_F(ServerTest, HealthFollowsTheWorkers) {
  options_.poll_interval = std::chrono::milliseconds(50);
  StartAll();
  const auto health = grpc::health::v1::Health::NewStub(channel_);
  grpc::ClientContext context;
  SetDeadline(&context);
  auto watch = health->Watch(&context, grpc::health::v1::HealthCheckRequest());
  grpc::health::v1::HealthCheckResponse response;
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
  prefill_->Kill();
  ASSERT_TRUE(watch->Read(&response));
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::NOT_SERVING);
  context.TryCancel();
  watch->Finish();

  // The process itself is well: whoever restarts what does not live leaves it alone.
  grpc::ClientContext liveness_context;
  SetDeadline(&liveness_context);
  grpc::health::v1::HealthCheckRequest liveness;
  liveness.set_service("liveness");
  ASSERT_TRUE(health->Check(&liveness_context, liveness, &response).ok());
  EXPECT_EQ(response.status(), grpc::health::v1::HealthCheckResponse::SERVING);
}

TEST_F(ServerTest, ReflectionListsTheService) {
  StartAll();
  grpc::GenericStub stub(channel_);
  grpc::CompletionQueue queue;
  grpc::ClientContext context;
  SetDeadline(&context);
  const auto next = [&queue] {
    void* tag = nullptr;
    bool ok = false;
    return queue.Next(&tag, &ok) && ok;
  };
  auto call = stub.PrepareCall(
      &context, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", &queue);
  call->StartCall(nullptr);
  ASSERT_TRUE(next());
  const grpc::Slice list_services("\x3a\x01*");  // field 7, list_services: "*"
  call->Write(grpc::ByteBuffer(&list_services, 1), nullptr);
  ASSERT_TRUE(next());
  grpc::ByteBuffer reply;
  call->Read(&reply, nullptr);
  ASSERT_TRUE(next());
  grpc::Slice bytes;
  ASSERT_TRUE(reply.DumpToSingleSlice(&bytes).ok());
  EXPECT_THAT(std::string(reinterpret_cast<const char*>(bytes.begin()), bytes.size()),
              HasSubstr("oscarkv.v1.Gateway"));
  context.TryCancel();
  grpc::Status status;
  call->Finish(&status, nullptr);
  next();
}

TEST_F(ServerTest, BadOptionsRefuseToStart) {
  struct {
    const char* name;
    std::function<void(GatewayOptions*)> change;
    absl::StatusCode code;
    const char* says;
  } cases[] = {
      {"NoModel", [](auto* o) { o->model.clear(); }, absl::StatusCode::kInvalidArgument, "--model"},
      {"NoPrefill", [](auto* o) { o->prefill.clear(); }, absl::StatusCode::kInvalidArgument,
       "--prefill is empty"},
      {"NoPort", [](auto* o) { o->attention = {"localhost"}; }, absl::StatusCode::kInvalidArgument,
       "--attention has \"localhost\""},
      {"BadPort", [](auto* o) { o->attention = {"h:70000"}; }, absl::StatusCode::kInvalidArgument,
       "h:70000"},
      {"Twice",
       [](auto* o) {
         o->prefill = {"h:1", "h:1"};
       },
       absl::StatusCode::kInvalidArgument, "h:1 twice"},
      {"Router", [](auto* o) { o->router = "best"; }, absl::StatusCode::kInvalidArgument,
       "prefix-aware, round-robin"},
      {"Address", [](auto* o) { o->listen = "203.0.113.1:1"; }, absl::StatusCode::kUnavailable,
       "203.0.113.1:1"},
      {"HttpAddress", [](auto* o) { o->http_listen = "nowhere"; },
       absl::StatusCode::kInvalidArgument, "--http-listen: \"nowhere\": expected HOST:PORT"},
      {"HttpAddressInUse", [](auto* o) { o->http_listen = "203.0.113.1:1"; },
       absl::StatusCode::kUnavailable, "--http-listen: cannot listen on 203.0.113.1:1"},
  };
  for (const auto& c : cases) {
    SCOPED_TRACE(c.name);
    GatewayOptions options;
    options.listen = "127.0.0.1:0";
    options.model = "models/reference";
    options.prefill = {"127.0.0.1:1"};
    options.attention = {"127.0.0.1:1"};
    options.worker_wait = Duration{0};
    c.change(&options);
    const auto server =
        GatewayServer::Start(options, &registry_, std::make_unique<FakeMatchStore>());
    EXPECT_EQ(server.status().code(), c.code) << server.status();
    EXPECT_THAT(server.status().message(), HasSubstr(c.says));
  }
}

TEST_F(ServerTest, PortInUseIsAnError) {
  StartAll();
  GatewayOptions second = options_;
  second.listen = "127.0.0.1:" + std::to_string(server_->port());
  MetricRegistry registry;
  EXPECT_EQ(
      GatewayServer::Start(second, &registry, std::make_unique<FakeMatchStore>()).status().code(),
      absl::StatusCode::kUnavailable);
}

TEST(AddOptions, EveryFieldHasARow) {
  GatewayOptions options;
  OptionTable table;
  AddOptions(&table, &options);
  const std::pair<const char*, const char*> values[] = {
      {"listen", "0.0.0.0:1"},
      {"model", "m"},
      {"nodes", "a:1,b:2"},
      {"prefill", "c:3"},
      {"attention", "d:4"},
      {"replicas", "3"},
      {"write-quorum", "2"},
      {"zone", "east"},
      {"etcd", "f:6"},
      {"etcd-prefix", "/p/"},
      {"etcd-ca", "ca.pem"},
      {"etcd-cert", "cert.pem"},
      {"etcd-key", "key.pem"},
      {"etcd-user", "u"},
      {"etcd-password-file", "password"},
      {"router", "round-robin"},
      {"max-running", "5"},
      {"max-waiting", "6"},
      {"threads", "7"},
      {"default-deadline", "8s"},
      {"match-timeout", "9ms"},
      {"poll-interval", "10s"},
      {"poll-timeout", "11s"},
      {"worker-wait", "12s"},
      {"max-message-size", "1MiB"},
      {"max-resumes", "13"},
      {"worker-silence", "14s"},
      {"resume-wait", "18s"},
      {"http-listen", "e:5"},
      {"http-max-body", "2MiB"},
      {"http-max-connections", "15"},
      {"max-tenants", "15"},
      {"tenant-max-running", "16"},
      {"tenant-tokens-per-second", "17"},
  };
  OptionTable security;
  auth::AddServerSecurityOptions(&security, &options.security);
  EXPECT_EQ(table.rows().size(), std::size(values) + security.rows().size());
  for (const auto& [name, value] : values) {
    EXPECT_TRUE(table.Set(name, value).ok()) << name << table.Set(name, value);
  }
  EXPECT_EQ(options.store.nodes.size(), 2u);
  EXPECT_EQ(options.router, "round-robin");
  EXPECT_EQ(options.max_running, 5);
  EXPECT_EQ(options.max_resumes, 13);
  EXPECT_EQ(options.http_listen, "e:5");
  EXPECT_EQ(options.http_max_body_bytes, 2u << 20);
  EXPECT_EQ(options.http_max_connections, 15);
  EXPECT_EQ(options.worker_silence, std::chrono::seconds(14));
  EXPECT_EQ(options.resume_wait, std::chrono::seconds(18));
  EXPECT_EQ(options.match_timeout, std::chrono::milliseconds(9));
  EXPECT_EQ(options.max_message_bytes, 1u << 20);
  EXPECT_EQ(table.Set("router", "best").code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(table.Set("max-running", "0").code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace oscarkv::gateway
