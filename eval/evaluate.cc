#include "eval/evaluate.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "absl/strings/str_cat.h"
#include "codec/fit.h"
#include "common/status_macros.h"
#include "eval/calibrate.h"
#include "eval/damage.h"
#include "eval/local_sequence.h"
#include "eval/needle.h"
#include "eval/treatment.h"
#include "model/tokenizer.h"

namespace oscarkv {
namespace {

constexpr int kChunk = 512;
// Questions about one text.
constexpr struct {
  const char* task;
  int questions;
} kTasks[] = {{"multi", 5}, {"single", 1}, {"copy", 8}};
// 0: no such task.
int QuestionsPerText(const std::string& task) {
  for (const auto& t : kTasks) {
    if (task == t.task) return t.questions;
  }
  return 0;
}
using Tokens = std::vector<int32_t>;

struct Treatment {
  TreatmentSetup setup;
  std::unique_ptr<Transformer> model;
  TreatmentResult result;
};

int Argmax(const float* logits, int n) {
  return static_cast<int>(std::max_element(logits, logits + n) - logits);
}

// A chunk's distributions under bf16.
struct Reference {
  std::vector<float> log, probability;  // [kChunk][vocab]
  std::vector<int> best;                // [kChunk]
};

float Quantile(std::vector<float> v, double q) {
  if (v.empty()) return 0;
  const auto at = v.begin() + static_cast<int64_t>(q * static_cast<double>(v.size() - 1));
  std::nth_element(v.begin(), at, v.end());
  return *at;
}

class Evaluator {
 public:
  Evaluator(const EvalOptions& options, const ModelConfig& config, const Tokenizer& tokenizer)
      : options_(options), config_(config), tokenizer_(tokenizer) {}

  absl::StatusOr<EvalReport> Run(const std::vector<Text>& texts) {
    RETURN_IF_ERROR(CheckOptions());
    RETURN_IF_ERROR(Load());
    PromptPlan plan;
    plan.prompt_tokens = options_.window_tokens;
    plan.tokens = options_.windows * options_.window_tokens;
    plan.seed = options_.seed;
    std::vector<Tokens> windows;
    if (options_.windows >= 0) {
      ASSIGN_OR_RETURN(windows, MakePrompts(texts, tokenizer_, plan));
    }
    // Work grows with a prompt's length, here in units of a window.
    const auto tasks = static_cast<double>(options_.needle_tasks.size());
    for (const int length : options_.needle_lengths)
      work_ += tasks * static_cast<double>(options_.needles) * length / options_.window_tokens;
    work_ += static_cast<double>(windows.size());
    ASSIGN_OR_RETURN(output_gram_, OutputGrams(options_.model_dir, config_));
    for (size_t i = 0; i < windows.size(); ++i) {
      RETURN_IF_ERROR(RunWindow(windows[i], i == 0));
      if (options_.greedy_tokens > 0) RETURN_IF_ERROR(RunGreedy(windows[i]));
      Progress(1);
    }
    for (const std::string& task : options_.needle_tasks) {
      for (const int length : options_.needle_lengths)
        RETURN_IF_ERROR(RunNeedles(texts, task, length));
    }
    EvalReport report;
    report.greedy_tokens = options_.greedy_tokens;
    report.positions = positions_;
    for (Treatment& t : treatments_) report.treatments.push_back(std::move(t.result));
    return report;
  }

 private:
  // A question with its answer behind it.
  struct Question {
    Tokens tokens;
    int asked = 0;  // where the answer starts
  };

  // What would end a run after minutes.
  absl::Status CheckOptions() const {
    for (const std::string& task : options_.needle_tasks) {
      if (QuestionsPerText(task) == 0) {
        return absl::InvalidArgumentError(
            absl::StrCat("task \"", task, "\", known are multi, single and copy"));
      }
    }
    if (options_.windows >= 0 && options_.greedy_tokens > 0 &&
        int64_t{options_.window_tokens} + options_.greedy_tokens >
            config_.max_position_embeddings) {
      return absl::InvalidArgumentError(
          absl::StrCat("windows of ", options_.window_tokens,
                       " tokens and greedy continuations of ", options_.greedy_tokens,
                       " exceed the model's context of ", config_.max_position_embeddings));
    }
    return absl::OkStatus();
  }

  absl::Status Load() {
    std::vector<std::string> names = {"bf16"};
    names.insert(names.end(), options_.treatments.begin(), options_.treatments.end());
    for (const std::string& name : names) {
      Treatment t;
      ASSIGN_OR_RETURN(
          t.setup, MakeTreatment(
                       name, options_.fitted_dir.empty() ? options_.model_dir : options_.fitted_dir,
                       config_.kv_shape()));
      const KvCodec& codec = *t.setup.codec;
      t.result.name = name;
      t.result.codec = codec.Describe();
      if (codec.profile() != Profile::kBf16) {
        const kernels::KvShape& s = codec.shape();
        t.result.bits = 8.0 * static_cast<double>(s.PageLayerBytes()) /
                        (2.0 * kernels::kPageTokens * s.num_kv_heads * s.head_dim);
      }
      TransformerOptions model_options;
      model_options.compute = options_.compute;
      model_options.history = HistoryOf(t.setup.path);
      model_options.threads = options_.threads;
      ASSIGN_OR_RETURN(t.model,
                       Transformer::Load(options_.model_dir, t.setup.codec, model_options));
      treatments_.push_back(std::move(t));
    }
    return absl::OkStatus();
  }

  // Blocks keep their exact rows beside the pages, so that the two can be compared.
  static bool HasPages(const Treatment& t) {
    return t.setup.codec->profile() != Profile::kBf16 && t.setup.path == HistoryPath::kPages;
  }

  void Progress(double work) {
    done_ += work;
    if (options_.progress) options_.progress(done_ / work_);
  }

  // Chunk by chunk through all treatments, so that only one chunk's distributions are kept.
  absl::Status RunWindow(const Tokens& tokens, bool measure_damage) {
    std::vector<std::unique_ptr<LocalSequence>> sequences;
    std::vector<QueryMoments> moments(treatments_.size());
    for (Treatment& t : treatments_) {
      sequences.push_back(
          std::make_unique<LocalSequence>(*t.model, static_cast<int>(tokens.size())));
      for (auto* v : {&t.result.divergence.window_kl, &t.result.divergence.window_nll,
                      &t.result.divergence.window_top1})
        v->push_back(0);
    }
    std::vector<std::vector<float>> kl(treatments_.size());
    int counted = 0;
    for (int start = 0; start < static_cast<int>(tokens.size()); start += kChunk) {
      const auto part = absl::MakeConstSpan(tokens).subspan(start, kChunk);
      Reference reference;
      for (size_t i = 0; i < treatments_.size(); ++i) {
        Treatment& t = treatments_[i];
        if (measure_damage && HasPages(t)) moments[i].Observe(t.model.get());
        PrefillChunk chunk;
        chunk.on_logits = [&](int row, const float* logits) {
          const int position = start + row;
          if (position < options_.first_position || position + 1 >= static_cast<int>(tokens.size()))
            return;
          counted += i == 0;
          Count(i == 0, row, tokens[position + 1], logits, &reference, &t.result.divergence,
                &kl[i]);
        };
        const absl::Status status =
            PrefillTreatment(t.setup, t.model.get(), sequences[i].get(), part, start, chunk);
        t.model->set_layer_observer(nullptr);
        RETURN_IF_ERROR(status);
      }
    }
    positions_ += counted;
    for (size_t i = 0; i < treatments_.size(); ++i) {
      Divergence& d = treatments_[i].result.divergence;
      for (auto* v : {&d.window_kl, &d.window_nll, &d.window_top1})
        v->back() /= std::max(1, counted);
      d.window_p99.push_back(Quantile(std::move(kl[i]), 0.99));
      if (measure_damage && HasPages(treatments_[i]))
        MeasureLayers(moments[i], *sequences[i], &treatments_[i]);
    }
    return absl::OkStatus();
  }

  void Count(bool is_reference, int row, int next, const float* logits, Reference* reference,
             Divergence* d, std::vector<float>* kls) const {
    const int n = config_.vocab_size;
    const double z = LogSumExp(logits, n);
    d->window_nll.back() += z - logits[next];
    if (is_reference) {
      reference->log.resize(static_cast<size_t>(kChunk) * n);
      reference->probability.resize(reference->log.size());
      reference->best.resize(kChunk);
      for (int v = 0; v < n; ++v) {
        const float log = static_cast<float>(logits[v] - z);
        reference->log[static_cast<size_t>(row) * n + v] = log;
        reference->probability[static_cast<size_t>(row) * n + v] = std::exp(log);
      }
      reference->best[row] = Argmax(logits, n);
      d->window_top1.back() += 1;
      return;
    }
    const size_t at = static_cast<size_t>(row) * n;
    const double kl =
        KlDivergence(reference->log.data() + at, reference->probability.data() + at, logits, n);
    kls->push_back(static_cast<float>(kl));
    d->window_kl.back() += kl;
    d->window_top1.back() += Argmax(logits, n) == reference->best[row];
  }

  // Second moments of the queries of one window in the codec's space.
  struct QueryMoments {
    void Observe(Transformer* model) {
      const ModelConfig& c = model->config();
      const int d = c.head_dim, group = c.num_heads / c.num_kv_heads;
      lower.resize(c.num_layers * c.num_kv_heads, std::vector<double>(size_t{1} * d * d));
      model->set_layer_observer(
          [this, model, d, group](int layer, const Transformer::LayerActivations& a) {
            const ModelConfig& c = model->config();
            if (layer == 0) queries += int64_t{a.tokens} * group;
            model->executor()->ParallelFor(c.num_kv_heads, [&](int h) {
              std::vector<double> x(size_t{1} * a.tokens * d);
              for (int q = h * group; q < (h + 1) * group; ++q) {
                for (int t = 0; t < a.tokens; ++t)
                  std::copy_n(a.q + (int64_t{t} * c.num_heads + q) * d, d, x.begin() + t * d);
                AddSecondMoment(x.data(), nullptr, a.tokens, d,
                                lower[layer * c.num_kv_heads + h].data());
              }
            });
          });
    }
    std::vector<std::vector<double>> lower;  // [layer][kv_head]
    int64_t queries = 0;                     // per layer and kv head
  };

  // Errors of the coded blocks of a sequence against their bf16 copies.
  void MeasureLayers(const QueryMoments& moments, LocalSequence& sequence, Treatment* t) const {
    const kernels::KvShape shape = config_.kv_shape();
    const int d = shape.head_dim;
    SequenceKv& kv = sequence.kv();
    std::vector<kernels::Bf16> decoded(shape.Bf16LayerBytes() / 2);
    const KvCodec& codec = t->model->codec();
    for (int layer = 0; layer < shape.num_layers; ++layer) {
      double score = 0, value = 0, energy = 0;
      int64_t rows = 0;
      for (int h = 0; h < shape.num_kv_heads; ++h) {
        const int at = layer * shape.num_kv_heads + h;
        const std::vector<double> s =
            Symmetric(moments.lower[at], d, 1.0 / static_cast<double>(moments.queries));
        const float* o = codec.OutputTransform(layer, h);
        const std::vector<double> g =
            o == nullptr ? output_gram_[at]
                         : Congruence({o, o + size_t{1} * d * d}, output_gram_[at], d);
        for (int b = kSinkBlocks; b < kv.num_blocks(); ++b) {
          if (kv.at(b).page < 0) continue;
          if (!codec.DecodeLayer(layer, kv.pool().page_layer(kv.at(b).page, layer), decoded.data())
                   .ok())
            continue;
          const kernels::Bf16* exact = kv.pool().block_layer(kv.at(b).block, layer);
          for (int r = 0; r < kBlockTokens; ++r, ++rows) {
            const size_t key = (size_t{1} * h * kBlockTokens + r) * d;
            const size_t val = key + shape.Bf16SideElements();
            score += Quadratic(exact + key, decoded.data() + key, s, d, 1);
            value += Quadratic(exact + val, decoded.data() + val, g, d, 1);
            energy += Quadratic(exact + val, decoded.data() + val, g, d, 0);
          }
        }
      }
      t->result.layers.push_back(
          {std::sqrt(score / static_cast<double>(std::max<int64_t>(1, rows)) / d),
           std::sqrt(value / std::max(energy, 1e-300))});
    }
  }

  // x S x^T of x = exact - share * decoded.
  static double Quadratic(const kernels::Bf16* exact, const kernels::Bf16* decoded,
                          const std::vector<double>& s, int d, double share) {
    std::vector<double> x(d);
    for (int i = 0; i < d; ++i)
      x[i] = kernels::ToFloat(exact[i]) - share * kernels::ToFloat(decoded[i]);
    double sum = 0;
    for (int i = 0; i < d; ++i) {
      double dot = 0;
      for (int j = 0; j < d; ++j) dot += s[i * d + j] * x[j];
      sum += dot * x[i];
    }
    return sum;
  }

  // bf16's greedy continuation of a prompt, by decoding.
  absl::StatusOr<Tokens> Continue(const Treatment& t, const Tokens& prompt) const {
    const int n = static_cast<int>(prompt.size()), end = n + options_.greedy_tokens;
    LocalSequence sequence(*t.model, end);
    std::vector<float> logits;
    for (int start = 0; start < n; start += kChunk) {
      PrefillChunk chunk;
      chunk.want_logits = start + kChunk >= n;
      ASSIGN_OR_RETURN(
          PrefillOutput out,
          sequence.Prefill(*t.model, absl::MakeConstSpan(prompt).subspan(start, kChunk), start,
                           std::move(chunk)));
      logits = std::move(out.logits);
    }
    Tokens tokens = prompt;
    while (true) {
      tokens.push_back(Argmax(logits.data(), config_.vocab_size));
      if (static_cast<int>(tokens.size()) == end) return tokens;
      const int position = static_cast<int>(tokens.size()) - 1;
      RETURN_IF_ERROR(sequence.EnsureSlots(position, position + 1));
      const DecodeInput input{tokens.back(), position, &sequence.kv()};
      RETURN_IF_ERROR(t.model->DecodeStep(absl::MakeConstSpan(&input, 1), &logits));
    }
  }

  // Up to its first other token a treatment's own continuation is bf16's: so it is enough to ask
  // for its choices along that.
  absl::Status RunGreedy(const Tokens& window) {
    ASSIGN_OR_RETURN(const Tokens tokens, Continue(treatments_[0], window));
    const int n = static_cast<int>(window.size()), size = static_cast<int>(tokens.size());
    for (Treatment& t : treatments_) {
      LocalSequence sequence(*t.model, size);
      int first = size;  // position of the first token that is not chosen
      for (int start = 0; start < size; start += kChunk) {
        PrefillChunk chunk;
        if (start + kChunk >= n) {
          chunk.logits_from = std::max(0, n - 1 - start);
          chunk.on_logits = [&](int row, const float* logits) {
            const int next = start + row + 1;
            if (next < n || next >= size) return;
            if (Argmax(logits, config_.vocab_size) != tokens[next]) first = std::min(first, next);
          };
        }
        RETURN_IF_ERROR(PrefillTreatment(t.setup, t.model.get(), &sequence,
                                         absl::MakeConstSpan(tokens).subspan(start, kChunk), start,
                                         chunk));
      }
      t.result.greedy.push_back(first - n);
    }
    return absl::OkStatus();
  }

  // Questions about one text of a task, with their answers.
  absl::StatusOr<std::vector<Question>> Questions(const std::string& book, const std::string& task,
                                                  int length, int n, uint64_t seed) const {
    const auto count = [&](const std::string& text) -> absl::StatusOr<size_t> {
      ASSIGN_OR_RETURN(const Tokens ids, tokenizer_.Encode(text));
      return ids.size();
    };
    const bool copy = task == "copy";
    ASSIGN_OR_RETURN(const NeedleText text,
                     copy ? BuildCopyText(book, length - 16, n, seed, count)
                          : BuildNeedleText(book, length - 16, n, seed, count));
    std::vector<Question> questions;
    for (int i = 0; i < n; ++i) {
      Question q;
      ASSIGN_OR_RETURN(q.tokens, tokenizer_.Encode(copy ? CopyPrompt(text, i)
                                                        : NeedlePrompt(text, text.needles[i])));
      q.asked = static_cast<int>(q.tokens.size());
      ASSIGN_OR_RETURN(const Tokens answer,
                       tokenizer_.Encode(absl::StrCat(" ", text.needles[i].number)));
      q.tokens.insert(q.tokens.end(), answer.begin(), answer.end());
      questions.push_back(std::move(q));
    }
    return questions;
  }

  absl::Status RunNeedles(const std::vector<Text>& texts, const std::string& task, int length) {
    const int per_text = QuestionsPerText(task);
    std::string book;
    for (const Text& text : texts) book += text.content;
    for (int first = 0; first < options_.needles; first += per_text) {
      const uint64_t seed = options_.seed * 1000003 + static_cast<uint64_t>(length) * 1000 + first;
      ASSIGN_OR_RETURN(std::vector<Question> questions,
                       Questions(book, task, length, per_text, seed));
      questions.resize(std::min<size_t>(questions.size(), options_.needles - first));
      for (Treatment& t : treatments_) {
        ASSIGN_OR_RETURN(std::vector<int> right, Answers(t, questions));
        t.result.needles.push_back({length, std::move(right), task});
      }
      Progress(static_cast<double>(length * questions.size()) / options_.window_tokens);
    }
    return absl::OkStatus();
  }

  // Whole blocks that the tokens of all questions begin with.
  static int SharedTokens(const std::vector<Question>& questions) {
    int shared = questions[0].asked - 1;
    for (const Question& q : questions) {
      const auto limit = q.tokens.begin() + std::min(shared, q.asked - 1);
      shared = static_cast<int>(
          std::mismatch(q.tokens.begin(), limit, questions[0].tokens.begin()).first -
          q.tokens.begin());
    }
    return shared / kBlockTokens * kBlockTokens;
  }

  // 1 for every question of whose answer each token is the most likely one: what greedy decoding
  // would answer. What the questions share is computed once; chunks are cut at whole blocks, so
  // that the outcome is that of each on its own.
  absl::StatusOr<std::vector<int>> Answers(const Treatment& t,
                                           const std::vector<Question>& questions) const {
    // The other paths replace blocks for good.
    const int shared = t.setup.path == HistoryPath::kPages ? SharedTokens(questions) : 0;
    size_t longest = 0;
    for (const Question& q : questions) longest = std::max(longest, q.tokens.size());
    std::unique_ptr<LocalSequence> sequence;
    std::vector<int> right;
    for (const Question& q : questions) {
      if (sequence == nullptr || shared == 0) {
        sequence = std::make_unique<LocalSequence>(*t.model, static_cast<int>(longest));
        for (int start = 0; start < shared; start += kChunk) {
          const auto part =
              absl::MakeConstSpan(q.tokens).subspan(start, std::min(kChunk, shared - start));
          RETURN_IF_ERROR(
              PrefillTreatment(t.setup, t.model.get(), sequence.get(), part, start, {}));
        }
      }
      ASSIGN_OR_RETURN(const bool answered, Answer(t, q, shared, sequence.get()));
      right.push_back(answered);
    }
    return right;
  }

  absl::StatusOr<bool> Answer(const Treatment& t, const Question& q, int from,
                              LocalSequence* sequence) const {
    bool right = true;
    const int size = static_cast<int>(q.tokens.size());
    for (int start = from; start < size; start += kChunk) {
      PrefillChunk chunk;
      if (start + kChunk >= q.asked) {
        chunk.logits_from = std::max(0, q.asked - 1 - start);
        chunk.on_logits = [&](int row, const float* logits) {
          const int position = start + row;
          if (position < q.asked - 1 || position + 1 >= size) return;
          right &= Argmax(logits, config_.vocab_size) == q.tokens[position + 1];
        };
      }
      RETURN_IF_ERROR(PrefillTreatment(t.setup, t.model.get(), sequence,
                                       absl::MakeConstSpan(q.tokens).subspan(start, kChunk), start,
                                       chunk));
    }
    return right;
  }

  const EvalOptions& options_;
  const ModelConfig& config_;
  const Tokenizer& tokenizer_;
  std::vector<Treatment> treatments_;
  std::vector<std::vector<double>> output_gram_;
  int positions_ = 0;
  double work_ = 0, done_ = 0;
};

}  // namespace

double LogSumExp(const float* logits, int n) {
  const float top = *std::max_element(logits, logits + n);
  double sum = 0;
  for (int v = 0; v < n; ++v) sum += std::exp(logits[v] - top);
  return top + std::log(sum);
}

double KlDivergence(const float* reference_log, const float* reference, const float* logits,
                    int n) {
  const double z = LogSumExp(logits, n);
  double kl = 0;
  for (int v = 0; v < n; ++v)
    kl += double{reference[v]} * (double{reference_log[v]} - (double{logits[v]} - z));
  return kl;
}

absl::StatusOr<EvalReport> Evaluate(const EvalOptions& options) {
  ASSIGN_OR_RETURN(const ModelConfig config, LoadModelConfig(options.model_dir));
  ASSIGN_OR_RETURN(const std::vector<Text> texts, ReadTexts(options.text_files));
  ASSIGN_OR_RETURN(const std::unique_ptr<Tokenizer> tokenizer, Tokenizer::Load(options.model_dir));
  return Evaluator(options, config, *tokenizer).Run(texts);
}

}  // namespace oscarkv
