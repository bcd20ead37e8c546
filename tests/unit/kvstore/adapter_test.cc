#include "kvstore/adapter.h"

#include <gtest/gtest.h>

#include "support.h"

namespace oscarkv {
namespace {

using kvtest::Key;

TEST(AdapterTest, PutStartComesBackAsItWas) {
  kv::PutStartRequest in{7,
                         {{Key(1), {}, BlockKind::kBf16, 123, Duration(0)},
                          {Key(2), Key(1), BlockKind::kHandover, 5, std::chrono::seconds(9)}},
                         42};
  in.items[1].placement = Key(3);
  in.items[1].restored = true;
  in.items[1].idle = std::chrono::seconds(4);
  v1::PutStartRequest proto;
  ToProto(in, &proto);
  kv::PutStartRequest out;
  ASSERT_TRUE(FromProto(proto, &out).ok());
  EXPECT_EQ(out.session_id, 7u);
  EXPECT_EQ(out.put_id, 42u);
  ASSERT_EQ(out.items.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    EXPECT_EQ(out.items[i].key, in.items[i].key);
    EXPECT_EQ(out.items[i].parent, in.items[i].parent);
    EXPECT_EQ(out.items[i].kind, in.items[i].kind);
    EXPECT_EQ(out.items[i].size, in.items[i].size);
    EXPECT_EQ(out.items[i].ttl, in.items[i].ttl);
    EXPECT_EQ(out.items[i].placement, in.items[i].placement);
    EXPECT_EQ(out.items[i].restored, in.items[i].restored);
    EXPECT_EQ(out.items[i].idle, in.items[i].idle);
  }
}

TEST(AdapterTest, ComparisonsOfNodesAreChecked) {
  kv::CompareBlocksRequest in;
  in.tenant_digest[2] = 9;
  in.keys = {Key(1), Key(2)};
  in.idle_seconds = {5, 6};
  v1::CompareBlocksRequest proto;
  ToProto(in, &proto);
  kv::CompareBlocksRequest out;
  ASSERT_TRUE(FromProto(proto, &out).ok());
  EXPECT_EQ(out.tenant_digest, in.tenant_digest);
  EXPECT_EQ(out.keys, in.keys);
  EXPECT_EQ(out.idle_seconds, in.idle_seconds);
  proto.add_idle_seconds(7);
  kv::CompareBlocksRequest refused;
  EXPECT_TRUE(absl::IsInvalidArgument(FromProto(proto, &refused)));
  proto.set_tenant("short");
  EXPECT_TRUE(absl::IsInvalidArgument(FromProto(proto, &refused)));

  v1::CompareDigestsRequest digests;
  ToProto(kv::CompareDigestsRequest{"a:1", std::vector<uint64_t>(kv::kDigestBuckets, 3)}, &digests);
  kv::CompareDigestsRequest parsed;
  ASSERT_TRUE(FromProto(digests, &parsed).ok());
  EXPECT_EQ(parsed.digests.size(), kv::kDigestBuckets);
  digests.add_digests(1);
  EXPECT_TRUE(absl::IsInvalidArgument(FromProto(digests, &parsed)));
  v1::CompareDigestsResponse differing;
  differing.add_differing(kv::kDigestBuckets);
  kv::CompareDigestsResponse buckets;
  EXPECT_TRUE(absl::IsInvalidArgument(FromProto(differing, &buckets)));
  v1::CompareBlocksResponse states;
  states.add_states(v1::COPY_STATE_WANTED);
  states.add_states(static_cast<v1::CopyState>(99));  // of a newer node
  kv::CompareBlocksResponse known;
  ASSERT_TRUE(FromProto(states, &known).ok());
  EXPECT_EQ(known.states,
            std::vector<kv::CopyState>({kv::CopyState::kWanted, kv::CopyState::kStored}));
}

TEST(AdapterTest, StatusesKeepCodesAndTheFirstMessages) {
  kv::PutEndResponse in;
  in.statuses = {absl::OkStatus(), absl::NotFoundError("gone")};
  for (int i = 0; i < 100; ++i) in.statuses.push_back(absl::DataLossError("bad"));
  v1::PutEndResponse proto;
  ToProto(in, &proto);
  kv::PutEndResponse out;
  ASSERT_TRUE(FromProto(proto, &out).ok());
  ASSERT_EQ(out.statuses.size(), in.statuses.size());
  EXPECT_TRUE(out.statuses[0].ok());
  EXPECT_EQ(out.statuses[1], absl::NotFoundError("gone"));
  EXPECT_EQ(out.statuses[2], absl::DataLossError("bad"));
  EXPECT_EQ(out.statuses.back().code(), absl::StatusCode::kDataLoss);
}

TEST(AdapterTest, LocationsComeBackAsTheyWere) {
  kv::GetStartResponse in;
  in.statuses = {absl::OkStatus(), absl::NotFoundError("")};
  in.locations = {{9, 4096, 100, 77, {{60, 40}, {1, 2}}, 3}, {}};
  v1::GetStartResponse proto;
  ToProto(in, &proto);
  kv::GetStartResponse out;
  ASSERT_TRUE(FromProto(proto, &out).ok());
  EXPECT_EQ(out.locations[0].pin_id, 9u);
  EXPECT_EQ(out.locations[0].offset, 4096u);
  EXPECT_EQ(out.locations[0].size, 100u);
  EXPECT_EQ(out.locations[0].generation, 77u);
  EXPECT_EQ(out.locations[0].slices, in.locations[0].slices);
  EXPECT_EQ(out.locations[0].extra_copies, 3u);
}

TEST(AdapterTest, WhatIsWrongIsNamed) {
  v1::MatchPrefixRequest match;
  match.set_keys(std::string(33, 'k'));
  kv::MatchPrefixRequest out_match;
  EXPECT_EQ(FromProto(match, &out_match).message(), "keys of 33 bytes: expected a multiple of 32");
  match.set_keys(std::string(32 * (kv::kMaxItemsPerCall + 1), 'k'));
  EXPECT_EQ(FromProto(match, &out_match).code(), absl::StatusCode::kInvalidArgument);

  v1::PutStartRequest put;
  put.add_items()->set_key("short");
  kv::PutStartRequest out_put;
  EXPECT_EQ(FromProto(put, &out_put).message(), "key of 5 bytes: expected 32");
  put.mutable_items(0)->set_key(std::string(32, 'k'));
  EXPECT_NE(FromProto(put, &out_put).message().find("kind 0"), absl::string_view::npos);

  v1::PutEndRequest end;
  end.add_items()->set_key(std::string(32, 'k'));
  end.mutable_items(0)->mutable_slices()->add_lengths(5);
  kv::PutEndRequest out_end;
  EXPECT_NE(FromProto(end, &out_end).message().find("1 lengths and 0 checksums"),
            absl::string_view::npos);

  v1::EraseRequest erase;
  kv::EraseRequest out_erase;
  EXPECT_NE(FromProto(erase, &out_erase).message().find("reason 0"), absl::string_view::npos);

  v1::WriteBlocksRequest write;
  write.set_data(std::string(kv::kMaxChunkBytes + 1, 'd'));
  kv::WriteChunk chunk;
  EXPECT_EQ(FromProto(write, &chunk).code(), absl::StatusCode::kInvalidArgument);
}

TEST(AdapterTest, EndlessTtlsAreCut) {
  v1::GetStartRequest proto;
  proto.set_pin_ttl_ms(UINT64_MAX);
  kv::GetStartRequest out;
  ASSERT_TRUE(FromProto(proto, &out).ok());
  EXPECT_GT(out.pin_ttl, Duration(std::chrono::hours(24)));
  EXPECT_LT(out.pin_ttl, Duration(std::chrono::hours(24 * 400)));
}

}  // namespace
}  // namespace oscarkv
