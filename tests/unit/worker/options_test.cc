#include "worker/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace oscarkv::worker {
namespace {

using testing::HasSubstr;

TEST(WorkerOptions, RowsSetTheirFields) {
  WorkerOptions options;
  OptionTable table;
  AddWorkerOptions(&table, &options);
  for (const auto& [name, value] :
       std::vector<std::pair<std::string, std::string>>{{"listen", "0.0.0.0:1"},
                                                        {"model", "m"},
                                                        {"nodes", "a:1,b:2"},
                                                        {"profile", "bf16"},
                                                        {"prefill-history", "canonical"},
                                                        {"key-clip", "0.9"},
                                                        {"page-pool", "2GiB"},
                                                        {"handover-ttl", "5s"},
                                                        {"data-path", "grpc"},
                                                        {"threads", "3"}}) {
    EXPECT_TRUE(table.Set(name, value).ok()) << name;
  }
  EXPECT_EQ(options.listen, "0.0.0.0:1");
  EXPECT_THAT(options.store.nodes, testing::ElementsAre("a:1", "b:2"));
  EXPECT_EQ(options.profile, "bf16");
  EXPECT_EQ(options.prefill_history, "canonical");
  EXPECT_FLOAT_EQ(options.key_clip, 0.9f);
  EXPECT_EQ(options.page_pool_bytes, uint64_t{2} << 30);
  EXPECT_EQ(options.handover_ttl, std::chrono::seconds(5));
  EXPECT_EQ(options.data_path, "grpc");
  EXPECT_EQ(options.threads, 3);
  for (const auto& [name, value] : std::vector<std::pair<std::string, std::string>>{
           {"profile", "int4"}, {"key-clip", "1.5"}, {"io-threads", "0"}}) {
    EXPECT_EQ(table.Set(name, value).code(), absl::StatusCode::kInvalidArgument) << name;
  }
}

TEST(WorkerOptions, WhatTheTableCannotCheck) {
  WorkerOptions good;
  good.model = "m";
  good.store.nodes = {"a:1"};
  EXPECT_TRUE(CheckWorkerOptions(good).ok());
  struct Case {
    const char* text;
    std::function<void(WorkerOptions*)> spoil;
  };
  for (const Case& c : std::vector<Case>{
           {"--model", [](WorkerOptions* o) { o->model.clear(); }},
           {"--nodes", [](WorkerOptions* o) { o->store.nodes.clear(); }},
           {"--device \"gpu\"", [](WorkerOptions* o) { o->device = "gpu"; }},
           {"--pool-fraction=0.5 needs --device", [](WorkerOptions* o) { o->pool_fraction = 0.5; }},
           {"--deterministic needs --device cpu",
            [](WorkerOptions* o) {
              o->device = "cuda:0";
              o->deterministic = true;
            }},
           {"--key-rotation is missing", [](WorkerOptions* o) { o->value_rotation = "v.pt"; }},
           {"--value-rotation is missing", [](WorkerOptions* o) { o->key_rotation = "k.pt"; }},
       }) {
    WorkerOptions options = good;
    c.spoil(&options);
    const absl::Status status = CheckWorkerOptions(options);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()), HasSubstr(c.text));
  }
}

TEST(WorkerOptions, TheDataPathStaysOnThisMachineWithAllThatIsNamed) {
  StoreOptions store;
  store.nodes = {"127.0.0.1:1@east", "localhost:2/3"};
  EXPECT_EQ(DataPathDevices("", "127.0.0.1:0", store), "lo");
  EXPECT_EQ(DataPathDevices("", "0.0.0.0:0", store), "");
  EXPECT_EQ(DataPathDevices("eth0", "127.0.0.1:0", store), "eth0");
  store.etcd = {"127.0.0.1:2379", "10.0.0.1:2379"};
  EXPECT_EQ(DataPathDevices("", "127.0.0.1:0", store), "");
  store.etcd.clear();
  store.nodes.push_back("kv-2.example:7401");
  EXPECT_EQ(DataPathDevices("", "127.0.0.1:0", store), "");
}

}  // namespace
}  // namespace oscarkv::worker
