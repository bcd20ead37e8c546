#include "model/cuda/cuda_runner.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "common/log.h"
#include "common/options.h"
#include "common/status_macros.h"

namespace oscarkv {

using kernels::cuda::ElementType;

absl::StatusOr<std::unique_ptr<ModelRunner>> LoadCudaRunner(const std::string& model_dir,
                                                            std::shared_ptr<const KvCodec> codec,
                                                            const TransformerOptions& options) {
  return CudaRunner::Load(model_dir, std::move(codec), options);
}

CudaRunner::CudaRunner(ModelConfig config, std::shared_ptr<const KvCodec> codec,
                       const TransformerOptions& options)
    : config_(std::move(config)),
      codec_(std::move(codec)),
      history_(options.history),
      threads_(options.threads, "okv-model") {}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Prepare(
    const ModelConfig& config, std::shared_ptr<const KvCodec> codec,
    const TransformerOptions& options) {
  if (codec == nullptr) return absl::InvalidArgumentError("a transformer needs a codec");
  RETURN_IF_ERROR(CheckOptions(config, *codec, options));
  if (options.compute == kernels::Compute::kFp32 || options.fp32_kv) {
    return absl::UnimplementedError(
        "GPUs multiply bf16 operands (sums in fp32): --compute fp32 needs --device cpu");
  }
  ASSIGN_OR_RETURN(const int ordinal, ParseDevice(options.device));
  ASSIGN_OR_RETURN(std::vector<float> inv_freq,
                   RopeInverseFrequencies(config.rope, config.head_dim));
  std::unique_ptr<CudaRunner> r(new CudaRunner(config, std::move(codec), options));
  ASSIGN_OR_RETURN(r->device_, Device::Open(ordinal));
  for (kernels::cuda::Event* event : {&r->computed_, &r->copied_[0], &r->copied_[1]})
    RETURN_IF_ERROR(r->Ok(r->api().CreateEvent(/*timing=*/false, event), "event"));
  RETURN_IF_ERROR(r->SetRope(std::move(inv_freq)));
  return r;
}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Load(const std::string& model_dir,
                                                             std::shared_ptr<const KvCodec> codec,
                                                             const TransformerOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model_dir));
  ASSIGN_OR_RETURN(std::unique_ptr<CudaRunner> r, Prepare(config, std::move(codec), options));
  ASSIGN_OR_RETURN(const std::unique_ptr<TensorStore> store, TensorStore::Open(model_dir));
  ASSIGN_OR_RETURN(r->weights_, LoadCudaWeights(*r->device_, *store, r->config_, *r->codec_,
                                                {options.compute, &r->threads_, options.progress}));
  ASSIGN_OR_RETURN(const kernels::cuda::DeviceInfo info, r->device_->Describe());
  LogInfo("weights are on the GPU", {{"device", options.device},
                                     {"name", info.name},
                                     {"free", FormatBytes(info.free_bytes)},
                                     {"of", FormatBytes(info.total_bytes)}});
  return r;
}

absl::StatusOr<std::unique_ptr<CudaRunner>> CudaRunner::Random(const ModelConfig& config,
                                                               std::shared_ptr<const KvCodec> codec,
                                                               const TransformerOptions& options,
                                                               uint64_t seed) {
  ASSIGN_OR_RETURN(std::unique_ptr<CudaRunner> r, Prepare(config, std::move(codec), options));
  ASSIGN_OR_RETURN(r->weights_, RandomCudaWeights(*r->device_, r->config_, *r->codec_, seed));
  return r;
}

CudaRunner::~CudaRunner() {
  if (device_ == nullptr || !device_->Enter().ok()) return;
  (void)device_->Synchronize();
  DropGraphs();
  for (const kernels::cuda::Event event : {computed_, copied_[0], copied_[1]}) {
    if (event.handle != nullptr) api().DestroyEvent(event);
  }
}

void CudaRunner::DropGraphs() {
  for (const auto& [bucket, graph] : graphs_) api().DestroyGraph(graph);
  graphs_.clear();
}

absl::Status CudaRunner::SetRope(std::vector<float> inv_freq) {
  rope_ = RopeTables(std::move(inv_freq));
  const int positions = config_.max_position_embeddings;
  rope_.Ensure(positions - 1);
  const size_t n = size_t{1} * positions * rope_.half_dim();
  DropGraphs();
  RETURN_IF_ERROR(cos_.Reserve(*device_, n));
  RETURN_IF_ERROR(sin_.Reserve(*device_, n));
  RETURN_IF_ERROR(cos_.Upload(rope_.cos(), n));
  RETURN_IF_ERROR(sin_.Upload(rope_.sin(), n));
  return device_->Synchronize();
}

absl::Status CudaRunner::RoundRopeFrequencies() {
  RETURN_IF_ERROR(device_->Enter());
  std::vector<float> inv_freq = rope_.inv_freq();
  for (float& f : inv_freq) f = kernels::ToFloat(kernels::ToBf16(f));
  return SetRope(std::move(inv_freq));
}

absl::Status CudaRunner::UsePool(const KvPool& pool) {
  if (pool_ != nullptr && pool_->serial() == pool.serial()) return absl::OkStatus();
  RETURN_IF_ERROR(device_->Synchronize());
  DropGraphs();
  pool_.reset();  // its memory may be needed for the new one
  ASSIGN_OR_RETURN(pool_, DevicePool::Create(*device_, pool));
  return absl::OkStatus();
}

absl::StatusOr<PreparedPool> CudaRunner::PreparePool(KvPool& pool) {
  RETURN_IF_ERROR(device_->Enter());
  RETURN_IF_ERROR(UsePool(pool));
  struct Pinned {
    const Device::Api* api;
    std::vector<void*> memory;
    ~Pinned() {
      for (void* m : memory) api->Unpin(m);
    }
  };
  auto pinned = std::make_shared<Pinned>(Pinned{&api(), {}});
  PoolStaging staging = PoolStaging::kPageLocked;
  std::string how = "page-locked";
  const auto pin = [&](void* memory, size_t bytes) {
    if (bytes == 0) return;
    if (api().Pin(memory, bytes) == kernels::KernelStatus::kOk) {
      pinned->memory.push_back(memory);
    } else {
      staging = PoolStaging::kPageable;
      how = absl::StrCat("through the driver's staging (", api().LastError(), ")");
    }
  };
  const kernels::KvShape& shape = pool.shape();
  pin(pool.num_pages() > 0 ? pool.page(0) : nullptr, pool.num_pages() * shape.PageBytes());
  pin(pool.num_blocks() > 0 ? pool.block(0) : nullptr, pool.num_blocks() * shape.Bf16BlockBytes());
  LogInfo("KV pool is on the GPU, too",
          {{"pages", FormatBytes(pool.num_pages() * shape.PageBytes())},
           {"blocks", FormatBytes(pool.num_blocks() * shape.Bf16BlockBytes())},
           {"transfers", how}});
  return PreparedPool{std::move(pinned), staging};
}

absl::Status CudaRunner::ToHost(const SequenceKv& kv, int block) {
  const int32_t id = block < kv.num_blocks() ? kv.at(block).block : -1;
  if (id < 0 || pool_ == nullptr || pool_->serial() != kv.pool().serial()) return absl::OkStatus();
  RETURN_IF_ERROR(device_->Enter());
  bool copied = false;
  RETURN_IF_ERROR(pool_->BlockToHost(kv.pool(), id, stream(), &copied));
  return copied ? device_->Synchronize() : absl::OkStatus();
}

absl::Status CudaRunner::Multiply(const Bf16* x, const CudaProduct& w, int64_t rows,
                                  float* y) const {
  kernels::cuda::MatmulArgs args;
  args.x = x;
  args.w = w.weight.data();
  args.bias = w.bias.data();
  args.y = {y, ElementType::kFloat32};
  args.m = rows;
  args.n = w.n;
  args.k = w.k;
  return Ok(api().Matmul(device_->matmul(), args, stream()), "matrix product");
}

int64_t CudaRunner::KvRow(int32_t block, int position) const {
  return block * pool_->block_stride() / static_cast<int64_t>(sizeof(Bf16)) +
         position % kBlockTokens * config_.head_dim;
}

kernels::cuda::AttentionInputArgs CudaRunner::InputArgs(int layer, int tokens) const {
  const CudaLayer& w = weights_.layers[layer];
  const kernels::KvShape& shape = codec_->shape();
  kernels::cuda::AttentionInputArgs args;
  args.head_dim = config_.head_dim;
  args.num_kv_heads = config_.num_kv_heads;
  args.group = config_.num_heads / config_.num_kv_heads;
  args.num_tokens = tokens;
  args.row_stride = w.qkv.n;
  args.bias = w.qkv.bias.data();
  args.q_norm = w.q_norm.data();
  args.k_norm = w.k_norm.data();
  args.eps = config_.rms_norm_eps;
  args.cos_table = cos_.data();
  args.sin_table = sin_.data();
  args.half_dim = rope_.half_dim();
  args.transform = w.key_rotation.data();
  args.transform_head_stride = w.rotation_stride;
  args.query_transform = w.query_transform.data();
  args.key_mean = w.key_mean.data();
  args.kv = reinterpret_cast<Bf16*>(pool_->blocks() + layer * shape.Bf16LayerBytes());
  args.value_offset = static_cast<int64_t>(shape.Bf16SideElements());
  return args;
}

absl::Status CudaRunner::Encode(const int64_t* offsets, int n, int layer,
                                uint32_t* nonfinite) const {
  const kernels::KvShape& shape = codec_->shape();
  const size_t first = std::max(layer, 0);
  const auto* rows =
      reinterpret_cast<const Bf16*>(pool_->blocks() + first * shape.Bf16LayerBytes());
  uint8_t* pages = pool_->pages() + first * shape.PageLayerBytes();
  for (const kernels::Side side : {kernels::Side::kKey, kernels::Side::kValue}) {
    if (side == kernels::Side::kValue) rows += shape.Bf16SideElements();
    if (IsShaped(codec_->profile())) {
      RETURN_IF_ERROR(EncodeShaped(side, rows, offsets, n, layer, pages, nonfinite));
      continue;
    }
    kernels::cuda::EncodeBatchArgs args;
    args.head_dim = config_.head_dim;
    args.side = side;
    args.num_kv_heads = config_.num_kv_heads;
    args.num_blocks = n;
    args.rows = rows;
    args.row_stride = config_.head_dim;
    args.head_stride = int64_t{kBlockTokens} * config_.head_dim;
    args.row_begin = offsets;
    args.clip_ratio = codec_->ClipRatio(side);
    args.pages = pages;
    args.page_begin = offsets + n;
    args.block_nonfinite = nonfinite;
    RETURN_IF_ERROR(Ok(api().EncodeBlocks(args, stream()), "encoding"));
  }
  return absl::OkStatus();
}

absl::Status CudaRunner::EncodeShaped(kernels::Side side, const Bf16* rows, const int64_t* offsets,
                                      int n, int layer, uint8_t* pages, uint32_t* nonfinite) const {
  const kernels::ShapedArgs how = *codec_->ShapedEncoding(0, 0, side);
  kernels::cuda::ShapedBatchArgs args;
  args.head_dim = config_.head_dim;
  args.side = side;
  args.num_kv_heads = config_.num_kv_heads;
  args.num_layers = layer < 0 ? config_.num_layers : 1;
  args.num_blocks = n;
  args.rows = rows;
  args.row_stride = config_.head_dim;
  args.head_stride = int64_t{kBlockTokens} * config_.head_dim;
  args.row_begin = offsets;
  args.tables = weights_.shaped_tables[static_cast<int>(side)].data() +
                std::max(layer, 0) * config_.num_kv_heads *
                    kernels::cuda::ShapedTableFloats(config_.head_dim);
  args.sweeps = how.sweeps;
  args.symmetric = how.symmetric;
  args.pages = pages;
  args.page_begin = offsets + n;
  args.block_nonfinite = nonfinite;
  return Ok(api().EncodeShapedBlocks(args, stream()), "encoding");
}

}  // namespace oscarkv
