// oscarkv size: how much KV memory a model needs for so many users, and how many nodes that is.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "cli/command.h"
#include "cli/kv_size.h"
#include "cli/terminal.h"
#include "common/status_macros.h"
#include "model/model_config.h"

namespace oscarkv::cli {
namespace {

class SizeCommand final : public Command {
 public:
  std::string name() const override { return "size"; }
  std::string summary() const override {
    return "Compute how much KV memory a model's users need, in bf16 and as stored, and how many "
           "nodes";
  }
  void AddOptions(OptionTable* table) override {
    table->AddString("model", &model_, "DIR", "Hugging Face folder; its config.json is enough");
    table->AddInt64("context", &context_, 1, int64_t{1} << 24, "Tokens of each user's context");
    table->AddInt64("users", &users_, 1, int64_t{1} << 32,
                    "Contexts that should be found in the store");
    table->AddInt64("active", &active_, 0, int64_t{1} << 32,
                    "Of them, how many are being answered at once");
    table->AddChoice("profile", &profile_, {"oscar", "shaped", "shaped-sym", "bf16"},
                     "How the KV cache is stored");
    table->AddInt("replicas", &replicas_, 1, 8, "Copies of each block");
    table->AddBytes("node-capacity", &capacity_, uint64_t{1} << 24, uint64_t{1} << 50,
                    "--capacity of each KV node");
  }

  absl::Status Run() override {
    ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(model_));
    kernels::KvShape shape = config.kv_shape();
    shape.offsets = profile_ != "shaped-sym";
    if (context_ > config.max_position_embeddings) {
      std::printf("note: the model's context is %d tokens\n", config.max_position_embeddings);
    }
    const KvSize size = ComputeKvSize(shape, context_, profile_ != "bf16");
    const double users = static_cast<double>(users_), active = static_cast<double>(active_);
    const double copies = replicas_;
    const double stored = users * static_cast<double>(size.user_bytes_stored);
    const double handover = active * static_cast<double>(size.user_bytes_handover);
    const double bf16 = users * static_cast<double>(size.user_bytes_bf16);
    // Room above the high watermark, at which blocks are evicted.
    const double need = (stored + handover) * copies / kHighWatermark;
    const double nodes = std::max(std::ceil(need / static_cast<double>(capacity_)), copies);
    std::printf("%s: %d layers, %d KV heads, head_dim %d; contexts of %s tokens, profile %s\n\n",
                model_.c_str(), shape.num_layers, shape.num_kv_heads, shape.head_dim,
                absl::StrCat(context_).c_str(), profile_.c_str());
    std::printf(
        "%s\n",
        FormatTable({
                        {"", "STORED", "BF16", ""},
                        {"a token", Bytes(size.token_bytes_stored), Bytes(size.token_bytes_bf16),
                         Ratio(size.token_bytes_bf16, size.token_bytes_stored)},
                        {"tokens in a GiB", PerGiB(size.token_bytes_stored),
                         PerGiB(size.token_bytes_bf16), ""},
                        {"a context", Bytes(static_cast<double>(size.user_bytes_stored)),
                         Bytes(static_cast<double>(size.user_bytes_bf16)),
                         Ratio(static_cast<double>(size.user_bytes_bf16),
                               static_cast<double>(size.user_bytes_stored))},
                        {absl::StrCat(users_, " contexts"), Bytes(stored), Bytes(bf16),
                         Ratio(bf16, stored)},
                    })
            .c_str());
    std::printf(
        "hand-over blocks of %s active contexts: %s\n"
        "KV nodes: %s with %s for each block, filled to %.0f %%: %.0f of %s\n"
        "attention workers: %s of pages and windows for the active contexts\n",
        absl::StrCat(active_).c_str(), Bytes(handover).c_str(), Bytes(need).c_str(),
        replicas_ == 1 ? "one copy" : absl::StrCat(replicas_, " copies").c_str(),
        100 * kHighWatermark, nodes, FormatBytes(capacity_).c_str(),
        Bytes(active * static_cast<double>(size.worker_bytes)).c_str());
    return absl::OkStatus();
  }

 private:
  static constexpr double kHighWatermark = 0.95;  // of the nodes' eviction

  static std::string Bytes(double n) { return FormatBytes(static_cast<uint64_t>(n)); }
  static std::string Ratio(double whole, double part) {
    return absl::StrFormat("%.2f times smaller", whole / part);
  }
  static std::string PerGiB(double token) {
    return absl::StrFormat("%.0f", std::floor(1073741824.0 / token));
  }

  std::string model_ = "models/reference", profile_ = "oscar";
  int64_t context_ = 32768, users_ = 100, active_ = 10;
  int replicas_ = 1;
  uint64_t capacity_ = uint64_t{64} << 30;
};

}  // namespace

std::unique_ptr<Command> NewSizeCommand() {
  return std::make_unique<SizeCommand>();
}

}  // namespace oscarkv::cli
