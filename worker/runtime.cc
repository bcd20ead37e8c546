#include "worker/runtime.h"

#include <algorithm>
#include <filesystem>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/rpc/client_security.h"
#include "common/rpc/guard.h"
#include "common/status_macros.h"
#include "kvstore/client/tenant_clients.h"
#include "worker/device_placement.h"

namespace oscarkv::worker {
namespace {

absl::StatusOr<std::shared_ptr<const KvCodec>> BuildCodec(const WorkerOptions& options,
                                                          const ModelConfig& config) {
  CodecOptions codec;
  ASSIGN_OR_RETURN(codec.profile, ParseProfile(options.profile));
  codec.key_clip = options.key_clip;
  codec.value_clip = options.value_clip;
  codec.key_rotation_file = options.key_rotation;
  codec.value_rotation_file = options.value_rotation;
  codec.shaped_file = options.shaped_file;
  if (IsShaped(codec.profile) || options.key_rotation.empty()) {
    RETURN_IF_ERROR(FindCodecFiles(options.model, &codec));
  }
  return CreateCodec(codec, config.kv_shape());
}

absl::StatusOr<std::unique_ptr<ModelRunner>> BuildRunner(const WorkerOptions& options,
                                                         std::shared_ptr<const KvCodec> codec,
                                                         std::function<void(double)> progress) {
  TransformerOptions transformer;
  transformer.device = options.device;
  const bool native = options.device != "cpu" || kernels::HasNativeBf16();
  const bool bf16 = options.compute == "bf16" || (options.compute == "auto" && native);
  transformer.compute = bf16 ? kernels::Compute::kBf16 : kernels::Compute::kFp32;
  transformer.history = options.deterministic || options.prefill_history == "canonical"
                            ? PrefillHistory::kCanonical
                            : PrefillHistory::kExact;
  const int half = static_cast<int>(std::thread::hardware_concurrency() / 2);
  transformer.threads = options.threads > 0 ? options.threads : std::max(1, half);
  transformer.progress = std::move(progress);
  return LoadTransformer(options.model, std::move(codec), transformer);
}

// The threads that start from here on, and the memory they touch first, close to the GPU. A machine
// that does not tell where that is gets no binding, and no error.
absl::Status MoveToDevice(const WorkerOptions& options) {
  if (options.device == "cpu" || !options.device_affinity) return absl::OkStatus();
  ASSIGN_OR_RETURN(const GpuInfo gpu, DescribeGpu(options.device));
  const absl::StatusOr<std::vector<int>> cores = CoresNearPciDevice(gpu.pci_id);
  const absl::StatusOr<int> bound = cores.ok() ? RunOnCores(*cores) : cores.status();
  LogInfo("placement",
          {{"device", options.device},
           {"pci", gpu.pci_id},
           {"cores", !bound.ok()   ? std::string(bound.status().message())
                     : *bound == 0 ? "all: no NUMA node is known, or none of its cores "
                                     "is this process's"
                                   : absl::StrCat(*bound, " of the GPU's NUMA node")}});
  return absl::OkStatus();
}

// What pools may take of: the host has a copy of what the GPU holds.
absl::StatusOr<uint64_t> FreeBytes(const WorkerOptions& options) {
  if (options.pool_fraction == 0) return uint64_t{0};
  ASSIGN_OR_RETURN(const GpuInfo gpu, DescribeGpu(options.device));
  const uint64_t host = AvailableHostBytes();
  const uint64_t free = host == 0 ? gpu.free_bytes : std::min(gpu.free_bytes, host);
  LogInfo("pool sizes", {{"gpu_free", FormatBytes(gpu.free_bytes)},
                         {"host_free", host == 0 ? "unknown" : FormatBytes(host)},
                         {"fraction", absl::StrCat(options.pool_fraction)}});
  return free;
}

absl::StatusOr<std::unique_ptr<KvArena>> BuildArena(const WorkerOptions& options,
                                                    const kernels::KvShape& shape, bool coded,
                                                    const PoolDefaults& defaults,
                                                    Transport* transport) {
  ASSIGN_OR_RETURN(const uint64_t free, FreeBytes(options));
  ASSIGN_OR_RETURN(
      const PoolSlots slots,
      SizePools({options.page_pool_bytes, options.block_pool_bytes, options.pool_fraction}, shape,
                coded, defaults, free));
  return KvArena::Create(shape, slots.pages, slots.blocks, transport);
}

void LogStart(const WorkerRuntime& runtime) {
  const KvCodec& codec = runtime.runner->codec();
  if (codec.data_free()) {
    LogError(
        "no rotation files beside the model: using a data-free Hadamard rotation, answers will be "
        "less accurate. Put "
        "k_rotation_*.pt and v_rotation_*.pt into the model's folder, or name them with "
        "--key-rotation and --value-rotation");
  }
  LogInfo("worker built",
          {{"model", runtime.model_name},
           {"codec", codec.Describe()},
           {"pages", absl::StrCat(runtime.arena->pool().num_pages())},
           {"blocks", absl::StrCat(runtime.arena->pool().num_blocks())},
           {"arena", FormatBytes(runtime.arena->bytes())},
           {"data_path", runtime.transport == nullptr ? "grpc" : runtime.transport->name()}});
}

}  // namespace

absl::StatusOr<std::unique_ptr<WorkerRuntime>> BuildRuntime(
    const WorkerOptions& options, const std::string& role, MetricRegistry* registry,
    const std::function<PoolDefaults(const ModelConfig&, bool coded)>& defaults,
    std::function<void(double)> progress) {
  RETURN_IF_ERROR(CheckWorkerOptions(options));
  auto runtime = std::make_unique<WorkerRuntime>();
  const std::filesystem::path folder = std::filesystem::path(options.model).lexically_normal();
  runtime->model_name = (folder.has_filename() ? folder : folder.parent_path()).filename().string();
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model));
  ASSIGN_OR_RETURN(std::shared_ptr<const KvCodec> codec, BuildCodec(options, config));
  ASSIGN_OR_RETURN(runtime->model_fingerprint, ModelFingerprint(options.model));
  RETURN_IF_ERROR(MoveToDevice(options));
  ASSIGN_OR_RETURN(runtime->runner, BuildRunner(options, codec, std::move(progress)));
  if (options.data_path == "ucx") {
    UcxOptions ucx;
    ucx.lanes = options.ucx_lanes;
    ucx.devices = DataPathDevices(options.ucx_devices, options.listen, options.store);
    ASSIGN_OR_RETURN(runtime->transport, CreateUcxTransport(ucx, registry));
  }
  KvClientOptions client = ClientOptions(options.store);
  ASSIGN_OR_RETURN(client.security, rpc::ClientSecurity::Create(options.security));
  client.name = role;
  client.transport = runtime->transport.get();
  client.metrics = registry;
  ASSIGN_OR_RETURN(runtime->stores, TenantClients::Create(client, options.max_tenants));

  ASSIGN_OR_RETURN(runtime->guard, rpc::Guard::Create(options.security, registry));

  const bool coded = codec->profile() != Profile::kBf16;
  ASSIGN_OR_RETURN(runtime->arena, BuildArena(options, codec->shape(), coded,
                                              defaults(config, coded), runtime->transport.get()));
  ASSIGN_OR_RETURN(runtime->device_pool, runtime->runner->PreparePool(runtime->arena->pool()));
  const BlockIdentity identity{codec->profile(),
                               runtime->runner->prefill_history() == PrefillHistory::kCanonical,
                               codec->shape(), codec->fingerprint(), runtime->model_fingerprint};
  runtime->io = std::make_unique<BlockIo>(
      [stores = runtime->stores.get()](const std::string& tenant) { return stores->Of(tenant); },
      runtime->arena.get(), identity,
      BlockIoOptions{options.handover_ttl, options.store_timeout, options.deterministic},
      SteadyClock::Get());
  runtime->metrics = std::make_unique<WorkerMetrics>(registry, role);
  runtime->metrics->SetStaging(runtime->device_pool.staging);
  const kernels::KvShape& shape = codec->shape();
  runtime->metrics->SetCompression(
      coded ? static_cast<double>(shape.Bf16BlockBytes()) / shape.PageBytes() : 1);
  runtime->fetch_pool = std::make_unique<TaskPool>(options.io_threads, "worker-fetch");
  runtime->put_pool = std::make_unique<TaskPool>(options.io_threads, "worker-put");
  runtime->putter = std::make_unique<BlockPutter>(runtime->io.get(), runtime->put_pool.get());
  LogStart(*runtime);
  return runtime;
}

}  // namespace oscarkv::worker
