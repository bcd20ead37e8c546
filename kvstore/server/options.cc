#include "kvstore/server/options.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"
#include "kvstore/client/extra_copies.h"
#include "kvstore/cluster/etcd_options.h"
#include "kvstore/cluster/membership.h"

namespace oscarkv {

void AddOptions(OptionTable* table, KvStoreServerOptions* o) {
  using std::chrono::hours;
  using std::chrono::milliseconds;
  using std::chrono::minutes;
  using std::chrono::seconds;
  table->AddString("listen", &o->listen, "HOST:PORT",
                   "Address of the gRPC server; port 0 picks a free one");
  table->AddString("name", &o->name, "NAME",
                   "Name of the node in metrics and logs; empty: the listen address");
  table->AddBytes("capacity", &o->capacity, 1 << 20, uint64_t{1} << 50, "Memory for blocks");
  table->AddBool("huge-pages", &o->huge_pages,
                 "Ask for huge pages for that memory; without them it works too");
  table->AddBytes("slab", &o->slab_bytes, 0, uint64_t{1} << 40,
                  "Unit in which block sizes get memory, at least the largest block; 0: 1/64 of "
                  "the capacity, 1 MiB to 64 MiB");
  table->AddBytes(
      "tenant-quota", &o->tenant_quota, 0, uint64_t{1} << 50,
      "Memory that one tenant may fill; beyond it its own blocks are evicted; 0: no limit");
  table->AddChoice("eviction", &o->eviction, {"s3fifo", "lru"},
                   "Which blocks go first when memory is short");
  table->AddFloat("high-watermark", &o->high_watermark, 0.1, 1,
                  "Share of the capacity above which blocks are evicted ahead of need");
  table->AddFloat("low-watermark", &o->low_watermark, 0.05, 1,
                  "Share of the capacity down to which they are evicted");
  table->AddDuration("session-ttl", &o->session_ttl, milliseconds(100), minutes(10),
                     "A client that is silent for so long loses its pins and reservations");
  table->AddDuration("pin-ttl", &o->pin_ttl, milliseconds(100), hours(1),
                     "Longest time that a pin holds without renewal");
  table->AddDuration("put-ttl", &o->put_ttl, milliseconds(100), hours(1),
                     "A put that does not end within this is abandoned");
  table->AddBool("verify-on-put", &o->verify_on_put,
                 "Check the checksums of blocks when a put ends; readers check them always");
  table->AddString("ssd-path", &o->ssd_path, "FOLDER",
                   "Folder on a local disk for blocks that memory has no room for; empty: none");
  table->AddBytes("ssd-capacity", &o->ssd_capacity, 16 << 20, uint64_t{1} << 50,
                  "Disk space for them; the oldest go when it is used up");
  table->AddString("ssd-write-rate", &o->ssd_write_rate, "RATE",
                   "Most bytes written to the disk: per second (50MiB) or per day (3TB/day); what "
                   "would go beyond is not kept; 0: no limit");
  table->AddChoice("ssd-admission", &o->ssd_admission, {"reused", "always"},
                   "Which evicted blocks are written to the disk: those that a prefix match found, "
                   "or that are evicted a second time; or all");
  table->AddBytes("ssd-tenant-quota", &o->ssd_tenant_quota, 0, uint64_t{1} << 50,
                  "Disk space that one tenant may fill; 0: no limit");
  table->AddBytes(
      "ssd-queue", &o->ssd_queue, 1 << 20, uint64_t{1} << 40,
      "Memory for blocks waiting to be written to the disk; beyond it they are dropped");
  table->AddBytes("ssd-scrub-rate", &o->ssd_scrub_rate, 0, uint64_t{1} << 34,
                  "Bytes per second that are read to find damaged blocks on the disk; 0: none");
  table->AddDuration("ssd-wait", &o->ssd_wait, milliseconds(1), minutes(1),
                     "Longest time that a reader waits for blocks on the disk, at most half of its "
                     "own deadline; what is not read by then is a miss");
  table->AddChoice("data-path", &o->data_path, {"ucx", "grpc"},
                   "How blocks travel: by UCX where the client can, or only by gRPC");
  table->AddString("ucx-lanes", &o->ucx_lanes, "LIST",
                   "Lanes of the ucx data path: auto, shm, tcp, rdma, or a list as in UCX_TLS");
  table->AddString(
      "ucx-devices", &o->ucx_devices, "LIST",
      "Devices of the ucx data path, as in UCX_NET_DEVICES; empty: lo when --listen is "
      "a loopback address, else all");
  table->AddChoice(
      "data-access", &o->data_access, {"arena", "granted"},
      "What a worker may touch over the ucx data path: all blocks, or only those that its session "
      "has pinned or reserved, asked at each access; granted: the node offers no other lane than "
      "tcp, as shared memory and RDMA ask nobody");
  AddEtcdOptions(table, &o->etcd, &o->etcd_prefix, &o->etcd_access);
  table->AddString(
      "advertise", &o->advertise, "HOST:PORT",
      "With --etcd or --nodes: how clients reach this node; empty: the listen address");
  table->AddString(
      "zone", &o->zone, "NAME",
      "With --etcd: zone of this node; replicas go to different zones; empty: its own");
  table->AddFloat(
      "weight", &o->weight, 0, 1e6,
      "With --etcd: this node's share of the blocks, against the others' weights; 0: its "
      "capacity in GiB");
  table->AddStrings("nodes", &o->nodes, "HOST:PORT,...",
                    "All kvstore nodes, this one too, as the other roles have them: the node then "
                    "restores copies that others lost; empty: as --etcd says, or no repair");
  table->AddInt(
      "replicas", &o->replicas, 0, 8,
      "Copies of each block, as the other roles have it; 0: two when there are two nodes");
  table->AddBytes("repair-rate", &o->repair_rate, 0, uint64_t{1} << 40,
                  "Most bytes per second that this node sends to restore lost copies; 0: none are "
                  "restored, and none at a drain");
  table->AddDuration("repair-interval", &o->repair_interval, milliseconds(50), hours(1),
                     "How often nodes compare what they have");
  table->AddDuration("repair-grace", &o->repair_grace, milliseconds(0), hours(24),
                     "How long a node may be away before others take its place");
  table->AddInt("hot-copies", &o->hot_copies, 0, kMaxExtraCopies,
                "Extra copies, beyond the replicas, that blocks get at other nodes while they are "
                "read much; sent within --repair-rate; 0: none");
  table->AddFloat("hot-reads", &o->hot_reads, 0.1, 1e6,
                  "How often per second this node must serve a block to give it another extra "
                  "copy; below about half of that the copies end");
  table->AddFloat("hot-memory", &o->hot_memory, 0, 0.5,
                  "Share of the capacity that extra copies of other nodes' blocks may take");
  table->AddBytes("scrub-rate", &o->scrub_rate, 0, uint64_t{1} << 40,
                  "Bytes of blocks in memory per second that are compared with their checksums; "
                  "0: none");
  auth::AddServerSecurityOptions(table, &o->security);
}

absl::Status ParseWriteRate(const std::string& text, uint64_t* bytes_per_second) {
  absl::string_view size = text;
  const bool per_day = absl::ConsumeSuffix(&size, "/day");
  if (!per_day) absl::ConsumeSuffix(&size, "/s");
  uint64_t bytes = 0;
  if (!ParseBytes(size, &bytes).ok()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ssd-write-rate=", text,
        ": expected a size per second or per day, such as 50MiB, 50MiB/s or 3TB/day; 0: no limit"));
  }
  constexpr uint64_t kSecondsPerDay = 86400;
  *bytes_per_second = per_day ? (bytes + kSecondsPerDay - 1) / kSecondsPerDay : bytes;
  return absl::OkStatus();
}

absl::Status CheckOptions(const KvStoreServerOptions& o) {
  uint64_t write_rate = 0;
  RETURN_IF_ERROR(ParseWriteRate(o.ssd_write_rate, &write_rate));
  if (o.listen.rfind(':') == std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("--listen=", o.listen, ": expected HOST:PORT"));
  }
  RETURN_IF_ERROR(auth::CheckSecurityOptions(o.security));
  if (o.low_watermark >= o.high_watermark) {
    return absl::InvalidArgumentError(
        absl::StrCat("--low-watermark=", o.low_watermark,
                     ": expected less than --high-watermark=", o.high_watermark));
  }
  if (o.slab_bytes != 0 && (o.slab_bytes > o.capacity || o.slab_bytes % 4096 != 0)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--slab=", o.slab_bytes, ": expected 0 or a multiple of 4096 up to --capacity"));
  }
  if (o.data_access == "granted" && o.ucx_lanes != "auto" && o.ucx_lanes != "tcp") {
    return absl::InvalidArgumentError(absl::StrCat(
        "--ucx-lanes=", o.ucx_lanes,
        " with --data-access=granted: expected auto or tcp, other lanes cannot be checked"));
  }
  RETURN_IF_ERROR(CheckEtcdOptions(o.etcd, o.etcd_prefix, o.etcd_access));
  if (!o.nodes.empty() && !o.etcd.empty())
    return absl::InvalidArgumentError("--nodes and --etcd are both given: expected one of them");
  for (const std::string& node : o.nodes) RETURN_IF_ERROR(ParseMember(node).status());
  const std::string& advertised = o.advertise.empty() ? o.listen : o.advertise;
  if (!o.etcd.empty() &&
      (absl::StartsWith(advertised, "0.0.0.0:") || absl::StartsWith(advertised, "[::]:") ||
       absl::StartsWith(advertised, ":") || advertised.rfind(':') == std::string::npos)) {
    return absl::InvalidArgumentError(
        absl::StrCat("--advertise=", o.advertise, " with --listen=", o.listen,
                     ": expected the HOST:PORT by which clients reach this node"));
  }
  return absl::OkStatus();
}

}  // namespace oscarkv
