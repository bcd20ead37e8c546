#include "worker/options.h"

#include "absl/strings/str_cat.h"
#include "common/status_macros.h"
#include "model/model_runner.h"

namespace oscarkv::worker {

void AddWorkerOptions(OptionTable* table, WorkerOptions* o) {
  using std::chrono::hours;
  using std::chrono::milliseconds;
  using std::chrono::minutes;
  using std::chrono::seconds;
  table->AddString("listen", &o->listen, "HOST:PORT",
                   "Address of the gRPC server; port 0 picks a free one");
  table->AddString("model", &o->model, "DIR", "Hugging Face folder of the model");
  AddStoreOptions(table, &o->store);
  table->AddChoice("profile", &o->profile, {"oscar", "shaped", "shaped-sym", "bf16"},
                   "How the KV cache is stored: 2-bit pages, or unquantised");
  table->AddChoice("prefill-history", &o->prefill_history, {"exact", "canonical"},
                   "What the tokens of a prompt attend: unquantised history, or the stored codes "
                   "as decoding does");
  table->AddBool("deterministic", &o->deterministic,
                 "No answer depends on what the store holds: canonical history, --window-miss all, "
                 "and what an answer put into the store is found only by that answer");
  table->AddFloat("key-clip", &o->key_clip, 0.5, 1,
                  "Quantile at which keys are clipped before rounding");
  table->AddFloat("value-clip", &o->value_clip, 0.5, 1,
                  "Quantile at which values are clipped before rounding");
  table->AddString("codec-file", &o->shaped_file, "FILE",
                   "Fit of profiles shaped and shaped-sym; empty: codec_shaped*.safetensors in the "
                   "model's folder");
  table->AddString(
      "key-rotation", &o->key_rotation, "FILE",
      "Rotation of the keys (.pt or .safetensors); empty: k_rotation_* in the model's folder");
  table->AddString(
      "value-rotation", &o->value_rotation, "FILE",
      "Rotation of the values (.pt or .safetensors); empty: v_rotation_* in the model's folder");
  table->AddString("device", &o->device, "DEVICE",
                   "What computes: cpu, or cuda:N for GPU N, which also holds the KV pools");
  table->AddChoice(
      "compute", &o->compute, {"auto", "fp32", "bf16"},
      "Operands of matrix products; auto: bf16 where the device multiplies it natively");
  table->AddInt("threads", &o->threads, 0, 1024,
                "Threads for computing, with a GPU for loading; 0: half of the cores");
  table->AddChoice("data-path", &o->data_path, {"ucx", "grpc"},
                   "How blocks travel between this worker and the store");
  table->AddString("ucx-lanes", &o->ucx_lanes, "LIST",
                   "Lanes of the ucx data path: auto, or a list as in UCX_TLS");
  table->AddString("ucx-devices", &o->ucx_devices, "LIST",
                   "Devices of the ucx data path, as in UCX_NET_DEVICES; empty: lo when --listen, "
                   "--nodes and --etcd name loopback addresses, else all");
  table->AddBytes("page-pool", &o->page_pool_bytes, 0, uint64_t{1} << 50,
                  "Memory for 2-bit pages; 0: enough for several sequences of full length, at most "
                  "2 GiB unless one needs more");
  table->AddBytes("block-pool", &o->block_pool_bytes, 0, uint64_t{1} << 50,
                  "Memory for bf16 blocks; 0: what prompts of full length, resp. a full batch of "
                  "windows, need");
  table->AddFloat(
      "pool-fraction", &o->pool_fraction, 0, 0.95,
      "Share of the GPU's memory that is free beside the weights, at most the same share "
      "of the host's, that pools without a size of their own get; 0: as on a CPU");
  table->AddBool("device-affinity", &o->device_affinity,
                 "Run on the cores of the GPU's NUMA node, where the host's copy of the pools then "
                 "lies, too");
  table->AddDuration("handover-ttl", &o->handover_ttl, seconds(1), hours(24),
                     "How long the store keeps the bf16 copies of recent blocks");
  table->AddDuration(
      "store-timeout", &o->store_timeout, milliseconds(100), minutes(5),
      "Deadline of one call to the store; what fails is computed again, or not cached");
  table->AddInt("io-threads", &o->io_threads, 1, 64,
                "Threads that wait for the store, for fetches and for puts each");
  table->AddInt("max-tenants", &o->max_tenants, 1, 4096,
                "Tenants that have sessions at the store at once, the default one not counted");
  auth::AddServerSecurityOptions(table, &o->security);
}

absl::Status CheckWorkerOptions(const WorkerOptions& o) {
  if (o.model.empty())
    return absl::InvalidArgumentError("--model is empty: expected a model folder");
  RETURN_IF_ERROR(auth::CheckSecurityOptions(o.security));
  if (const auto device = ParseDevice(o.device); !device.ok())
    return absl::InvalidArgumentError(absl::StrCat("--", device.status().message()));
  if (o.pool_fraction > 0 && o.device == "cpu") {
    return absl::InvalidArgumentError(
        absl::StrCat("--pool-fraction=", o.pool_fraction, " needs --device cuda:N"));
  }
  if (o.deterministic && o.device != "cpu") {
    return absl::InvalidArgumentError(
        "--deterministic needs --device cpu: on a GPU the last bits of a row of a product depend "
        "on "
        "the number of rows beside it");
  }
  if (o.key_rotation.empty() != o.value_rotation.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--", o.key_rotation.empty() ? "key" : "value",
                     "-rotation is missing: expected both rotation files, or neither"));
  }
  return CheckStoreOptions(o.store);
}

}  // namespace oscarkv::worker
