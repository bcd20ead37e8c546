#include "eval/needle.h"

#include <algorithm>
#include <set>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "common/status_macros.h"

namespace oscarkv {
namespace {

constexpr absl::string_view kInstruction =
    "A special magic number is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the "
    "number afterwards.\n";

constexpr const char* kWords[] = {"basalt",  "candle",  "harbor", "lantern", "meadow",
                                  "orchard", "pepper",  "quartz", "ribbon",  "saddle",
                                  "thistle", "velvet",  "walnut", "anchor",  "copper",
                                  "falcon",  "granite", "hammer", "ivory",   "juniper"};

// splitmix64: the same prompts everywhere.
uint64_t Next(uint64_t* state) {
  uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
  return z ^ (z >> 31);
}

// Offsets just behind the full stops that end a sentence.
std::vector<size_t> SentenceEnds(absl::string_view text) {
  std::vector<size_t> ends;
  for (size_t i = 1; i + 1 < text.size(); ++i) {
    if (text[i] == '.' && text[i + 1] == ' ' && absl::ascii_islower(text[i - 1]))
      ends.push_back(i + 1);
  }
  return ends;
}

std::string Question(const Needle& needle) {
  return absl::StrCat("\nWhat is the special magic number for ", needle.word,
                      " mentioned in the provided text? The special magic number for ", needle.word,
                      " mentioned in the provided text is");
}

std::vector<Needle> MakeNeedles(int n, uint64_t* rng) {
  std::vector<Needle> needles;
  std::set<std::string> used;
  while (static_cast<int>(needles.size()) < n) {
    const std::string word = kWords[Next(rng) % std::size(kWords)];
    if (!used.insert(word).second) continue;
    needles.push_back({word, absl::StrCat(1000000 + Next(rng) % 9000000)});
  }
  return needles;
}

// The excerpt [0, length) of `book` with the needles' sentences at evenly spread sentence ends,
// moved about by the seed.
std::string Hide(absl::string_view excerpt, const std::vector<Needle>& needles, uint64_t rng) {
  const std::vector<size_t> ends = SentenceEnds(excerpt);
  std::string out(kInstruction);
  size_t done = 0;
  const size_t n = needles.size();
  for (size_t i = 0; i < n; ++i) {
    const size_t low = ends.size() * i / n, high = std::max(low + 1, ends.size() * (i + 1) / n);
    const size_t at = ends.empty()
                          ? excerpt.size()
                          : ends[std::min(low + Next(&rng) % (high - low), ends.size() - 1)];
    absl::StrAppend(&out, excerpt.substr(done, at - done), " One of the special magic numbers for ",
                    needles[i].word, " is: ", needles[i].number, ".");
    done = at;
  }
  absl::StrAppend(&out, excerpt.substr(done));
  return out;
}

std::string List(const std::vector<Needle>& needles) {
  std::string out;
  for (const Needle& n : needles) absl::StrAppend(&out, n.word, ": ", n.number, "\n");
  return out;
}

// Makes a text out of an excerpt of a book, and says what comes behind it at most.
struct Frame {
  std::function<std::string(absl::string_view excerpt)> text;
  std::string behind;
};

// The longest excerpt of the book, from a seeded sentence of its first half on, that comes to at
// most `tokens` tokens within its frame.
absl::StatusOr<std::string> FitExcerpt(absl::string_view book, size_t tokens, uint64_t* rng,
                                       const std::function<Frame(uint64_t rng)>& make_frame,
                                       const TokenCounter& count) {
  // Begin at a seeded sentence in the first half, if the book is long enough for that.
  const std::vector<size_t> ends = SentenceEnds(book);
  const size_t wanted_bytes = tokens * 4;
  size_t begin = 0;
  if (book.size() > wanted_bytes && !ends.empty()) {
    const size_t limit = std::min(book.size() - wanted_bytes, book.size() / 2);
    const size_t at = Next(rng) % std::max<size_t>(1, limit);
    begin = *std::lower_bound(ends.begin(), ends.end() - 1, at) + 1;
  }
  const absl::string_view rest = book.substr(begin);
  const Frame frame = make_frame(*rng);
  // By bisection on its bytes.
  size_t low = 0, high = std::min(rest.size(), tokens * 8);
  std::string best;
  while (low < high) {
    const size_t mid = (low + high + 1) / 2;
    size_t cut = mid;  // at a character's border
    while (cut > 0 &&
           (static_cast<unsigned char>(rest[std::min(cut, rest.size() - 1)]) & 0xc0) == 0x80)
      --cut;
    std::string text = frame.text(rest.substr(0, cut));
    ASSIGN_OR_RETURN(const size_t n, count(absl::StrCat(text, frame.behind)));
    if (n <= tokens) {
      best = std::move(text);
      low = mid;
      if (n + 8 >= tokens) break;
    } else {
      high = mid - 1;
    }
  }
  if (best.empty() || (low >= rest.size() && rest.size() < tokens * 2)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the text of ", book.size(), " bytes is too short for a prompt of ", tokens, " tokens"));
  }
  return best;
}

absl::StatusOr<NeedleText> Build(absl::string_view book, size_t tokens, int num_needles,
                                 uint64_t seed, const TokenCounter& count, bool copy) {
  if (num_needles < 1 || num_needles > static_cast<int>(std::size(kWords))) {
    return absl::InvalidArgumentError(
        absl::StrCat("number of needles is ", num_needles, ": expected 1..", std::size(kWords)));
  }
  uint64_t rng = seed * 0x2545f4914f6cdd1dULL + 1;
  NeedleText out;
  out.needles = MakeNeedles(num_needles, &rng);
  const auto frame = [&](uint64_t places) -> Frame {
    if (!copy) {
      return {[&, places](absl::string_view excerpt) { return Hide(excerpt, out.needles, places); },
              Question(out.needles.back())};
    }
    return {[&](absl::string_view excerpt) {
              return absl::StrCat("A list of words with their numbers:\n", List(out.needles), "\n",
                                  excerpt, "\n\nThe list of words with their numbers again:\n");
            },
            List(out.needles)};
  };
  ASSIGN_OR_RETURN(out.text, FitExcerpt(book, tokens, &rng, frame, count));
  return out;
}

}  // namespace

absl::StatusOr<NeedleText> BuildNeedleText(absl::string_view book, size_t tokens, int num_needles,
                                           uint64_t seed, const TokenCounter& count) {
  return Build(book, tokens, num_needles, seed, count, /*copy=*/false);
}

absl::StatusOr<NeedleText> BuildCopyText(absl::string_view book, size_t tokens, int pairs,
                                         uint64_t seed, const TokenCounter& count) {
  return Build(book, tokens, pairs, seed, count, /*copy=*/true);
}

std::string CopyPrompt(const NeedleText& text, int line) {
  const auto end = text.needles.begin() + line;
  return absl::StrCat(text.text, List({text.needles.begin(), end}), end->word, ":");
}

std::string NeedlePrompt(const NeedleText& text, const Needle& needle) {
  return absl::StrCat(text.text, Question(needle));
}

bool NeedleAnswered(const Needle& needle, absl::string_view answer) {
  answer = absl::StripLeadingAsciiWhitespace(answer);
  return absl::StartsWith(answer, needle.number) &&
         (answer.size() == needle.number.size() ||
          !absl::ascii_isdigit(answer[needle.number.size()]));
}

}  // namespace oscarkv
