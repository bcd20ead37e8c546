// Blocked causal attention with oneDNN's matrix products.
//
// For one kv head, the query tile Q (64 positions aligned to blocks) of all `group` heads is one
// matrix of M = 64 * group rows, so that every key and value is read once for the whole group. Keys
// are taken in spans of up to 8 blocks (512 keys): S = Q K^T and O += P V are products with fp32
// accumulation, between them one step of the online softmax per row.
//
// The library multiplies at full rate only if the right-hand operand is packed. Spans that lie
// wholly before the diagonal and start at a multiple of the span length are the same for all query
// tiles: they are packed once per kv head. The rest - the diagonal block, what is left before it,
// and in canonical mode the window behind which history begins - is copied and packed for each
// query tile, which costs 1-2 % at long contexts. Packing one kv head after the other bounds the
// memory.
//
// In canonical mode a packed span holds block 0 exact and all others from history: it is used only
// by tiles whose history reaches its end. Everything is a function of (query tile, keys) alone; so
// with a chunk that starts at a block the outputs of a query do not depend on how the prompt was
// cut into chunks, except through the number of rows of the last, partial tile.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels/aligned_buffer.h"
#include "kernels/convert.h"
#include "kernels/gemm/matmul.h"
#include "kernels/prefill_attention/op_backends.h"
#include "kernels/prefill_attention/softmax.h"

namespace oscarkv::kernels::cpu {
namespace {

constexpr int kSpanBlocks = 8;
constexpr int kRowStep =
    16;  // queries of a tile are padded to this, so that few shapes of primitives are made
constexpr int kAllHistory = std::numeric_limits<int>::max();

// Blocks [begin, end) of the keys; at most kSpanBlocks of them.
struct Span {
  int begin, end;
  int keys() const { return (end - begin) * kPageTokens; }
};

// Buffers of one task, reused from task to task.
struct Workspace {
  AlignedBuffer q, scores, weights, out, rows, packed_k, packed_v;
  std::vector<SoftmaxState> states;
};

// Tasks borrow workspaces here: at most as many exist as tasks run at once.
class WorkspacePool {
 public:
  std::unique_ptr<Workspace> Take() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (free_.empty()) return std::make_unique<Workspace>();
    std::unique_ptr<Workspace> w = std::move(free_.back());
    free_.pop_back();
    return w;
  }
  void Return(std::unique_ptr<Workspace> w) {
    std::lock_guard<std::mutex> lock(mutex_);
    free_.push_back(std::move(w));
  }

 private:
  std::mutex mutex_;  // guards free_
  std::vector<std::unique_ptr<Workspace>> free_;
};

void ForAll(Executor* executor, int n, const std::function<void(int)>& f) {
  if (executor != nullptr) {
    executor->ParallelFor(n, f);
  } else {
    for (int i = 0; i < n; ++i) f(i);
  }
}

class Prefill {
 public:
  explicit Prefill(const PrefillAttentionArgs& args)
      : a_(args),
        total_(args.start + args.num_queries),
        compute_(args.type == KvType::kBf16 && LibraryHasBf16() ? Compute::kBf16 : Compute::kFp32),
        element_(compute_ == Compute::kBf16 ? sizeof(Bf16) : sizeof(float)) {}

  void Run(Executor* executor) {
    const int first = a_.start / kPageTokens, last = (total_ - 1) / kPageTokens;  // query tiles
    const int spans = SharedSpans(last);
    const int keys = kSpanBlocks * kPageTokens;
    if (spans > 0) {
      shared_k_bytes_ = KeyPacker(keys)->bytes();
      shared_v_bytes_ = ValuePacker(keys)->bytes();
      shared_k_.Reserve(spans * shared_k_bytes_);
      shared_v_.Reserve(spans * shared_v_bytes_);
    }
    for (int head = 0; head < a_.num_kv_heads; ++head) {
      ForAll(executor, spans, [&](int i) {
        const ScopedOmpThreads one(1);
        std::unique_ptr<Workspace> w = workspaces_.Take();
        Pack(head, {i * kSpanBlocks, (i + 1) * kSpanBlocks}, kAllHistory, w.get(), SharedK(i),
             SharedV(i));
        workspaces_.Return(std::move(w));
      });
      // The last tiles have the most keys: they go first, so that the threads finish together.
      ForAll(executor, last - first + 1, [&](int i) {
        const ScopedOmpThreads one(1);
        std::unique_ptr<Workspace> w = workspaces_.Take();
        AttendTile(head, last - i, w.get());
        workspaces_.Return(std::move(w));
      });
    }
  }

 private:
  // How many shared spans the tile uses: those wholly before its diagonal block, in canonical mode
  // wholly in its history.
  int SharedSpans(int tile) const {
    return (a_.k_history == nullptr ? tile : HistoryEnd(a_, tile)) / kSpanBlocks;
  }
  char* SharedK(int span) { return static_cast<char*>(shared_k_.data()) + span * shared_k_bytes_; }
  char* SharedV(int span) { return static_cast<char*>(shared_v_.data()) + span * shared_v_bytes_; }

  // Right-hand operands: K^T [head_dim, keys] from rows of keys, V [keys, head_dim].
  std::shared_ptr<const Packer> KeyPacker(int keys) const {
    return Packer::Get({keys, a_.head_dim, compute_, true, compute_ == Compute::kBf16});
  }
  std::shared_ptr<const Packer> ValuePacker(int keys) const {
    return Packer::Get({a_.head_dim, keys, compute_, false, compute_ == Compute::kBf16});
  }

  // Copies the rows of a span from where they belong; rows behind the last position are zero.
  const void* GatherRows(const void* exact, const void* history, int head, Span span,
                         int history_end, AlignedBuffer* to) {
    const int d = a_.head_dim;
    char* rows = to->Reserve<char>(span.keys() * d * element_);
    for (int block = span.begin; block < span.end; ++block) {
      const bool from_history = history != nullptr && block >= 1 && block < history_end;
      const int64_t count = int64_t{std::min(kPageTokens, total_ - block * kPageTokens)} * d;
      const int64_t first = head * a_.head_stride + int64_t{block} * kPageTokens * d;
      const void* base = from_history ? history : exact;
      char* out = rows + int64_t{block - span.begin} * kPageTokens * d * element_;
      if (a_.type == KvType::kBf16 && compute_ == Compute::kFp32) {
        ConvertToFloat(static_cast<const Bf16*>(base) + first, count,
                       reinterpret_cast<float*>(out));
      } else {
        std::memcpy(out, static_cast<const char*>(base) + first * element_, count * element_);
      }
      std::memset(out + count * element_, 0, (int64_t{kPageTokens} * d - count) * element_);
    }
    return rows;
  }

  void Pack(int head, Span span, int history_end, Workspace* w, void* packed_k, void* packed_v) {
    KeyPacker(span.keys())
        ->Run(GatherRows(a_.k_exact, a_.k_history, head, span, history_end, &w->rows), packed_k);
    ValuePacker(span.keys())
        ->Run(GatherRows(a_.v_exact, a_.v_history, head, span, history_end, &w->rows), packed_v);
  }

  // Queries [first, first + rows) of the group as a matrix [padded * group, head_dim], rows in the
  // order (query, head).
  void LoadQueries(int head, int first, int rows, int padded, Workspace* w) {
    const int64_t width = int64_t{a_.group} * a_.head_dim;
    char* q = w->q.Reserve<char>(padded * width * element_);
    for (int i = 0; i < rows; ++i) {
      const float* from = a_.q + (int64_t{first - a_.start + i} * a_.num_kv_heads + head) * width;
      if (compute_ == Compute::kBf16) {
        ConvertToBf16(from, width, reinterpret_cast<Bf16*>(q) + i * width);
      } else {
        std::memcpy(q + i * width * element_, from, width * element_);
      }
    }
    std::memset(q + rows * width * element_, 0, (padded - rows) * width * element_);
  }

  void AttendTile(int head, int tile, Workspace* w) {
    const int first = std::max(a_.start, tile * kPageTokens);
    const int rows = std::min(total_, (tile + 1) * kPageTokens) - first;
    const int padded = (rows + kRowStep - 1) / kRowStep * kRowStep;
    const int m = padded * a_.group;
    LoadQueries(head, first, rows, padded, w);
    float* out = w->out.Reserve<float>(int64_t{m} * a_.head_dim);
    std::fill_n(out, int64_t{m} * a_.head_dim, 0.0f);
    w->states.assign(m, {-INFINITY, 0});

    const int shared = SharedSpans(tile);
    for (int i = 0; i < shared; ++i) {
      AttendSpan(first, m, {i * kSpanBlocks, (i + 1) * kSpanBlocks}, SharedK(i), SharedV(i), w);
    }
    for (int begin = shared * kSpanBlocks; begin <= tile; begin += kSpanBlocks) {
      const Span span{begin, std::min(begin + kSpanBlocks, tile + 1)};
      void* k = w->packed_k.Reserve(KeyPacker(span.keys())->bytes());
      void* v = w->packed_v.Reserve(ValuePacker(span.keys())->bytes());
      Pack(head, span, HistoryEnd(a_, tile), w, k, v);
      AttendSpan(first, m, span, k, v, w);
    }

    for (int r = 0; r < rows * a_.group; ++r)
      ScaleRow(out + int64_t{r} * a_.head_dim, a_.head_dim, 1 / w->states[r].sum);
    const int64_t width = int64_t{a_.group} * a_.head_dim;
    for (int i = 0; i < rows; ++i) {
      std::copy_n(out + i * width, width,
                  a_.out + (int64_t{first - a_.start + i} * a_.num_kv_heads + head) * width);
    }
  }

  // One step of the online softmax: m rows, the first of which is a query at position `first`,
  // against the keys of `span`.
  void AttendSpan(int first, int m, Span span, const void* packed_k, const void* packed_v,
                  Workspace* w) {
    const int n = span.keys(), d = a_.head_dim;
    const float scale_log2 = a_.scale * 1.44269504f;
    float* scores = w->scores.Reserve<float>(int64_t{m} * n);
    char* weights = w->weights.Reserve<char>(m * n * element_);
    float* out = static_cast<float*>(w->out.data());
    Matmul::Get({m, n, d, compute_, false, false})->Run(w->q.data(), packed_k, nullptr, scores);
    for (int r = 0; r < m; ++r) {
      // Only in the diagonal block is this less than n.
      const int valid = std::min(n, first + r / a_.group - span.begin * kPageTokens + 1);
      const float factor = SoftmaxStep(scores + int64_t{r} * n, valid, n, scale_log2,
                                       compute_ == Compute::kBf16 ? KvType::kBf16 : KvType::kFp32,
                                       weights + int64_t{r} * n * element_, &w->states[r]);
      if (factor != 1 && span.begin != 0) ScaleRow(out + int64_t{r} * d, d, factor);
    }
    Matmul::Get({m, d, n, compute_, true, false})->Run(weights, packed_v, nullptr, out);
  }

  const PrefillAttentionArgs& a_;
  const int total_;        // positions that have keys
  const Compute compute_;  // bf16 rows are computed in fp32 where the library has no bf16 products
  const size_t element_;   // bytes of an operand's element
  WorkspacePool workspaces_;
  // The shared spans of the current kv head.
  AlignedBuffer shared_k_, shared_v_;
  size_t shared_k_bytes_ = 0, shared_v_bytes_ = 0;
};

}  // namespace

KernelStatus PrefillAttention(const PrefillAttentionArgs& args, Executor* executor) {
  if (args.num_queries > 0) Prefill(args).Run(executor);
  return KernelStatus::kOk;
}

}  // namespace oscarkv::kernels::cpu
