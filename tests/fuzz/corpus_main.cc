// Runs a libFuzzer entry point without libFuzzer: over every file of a corpus folder, every
// truncation of the small ones, and seeded random mutations of them, for a bounded time. The seed
// is printed; with the same seed the same inputs come in the same order, only how many of them fit
// into the time differs.
//   x_corpus_test CORPUS_FOLDER [SEED] [SECONDS]
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <random>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

using Bytes = std::vector<uint8_t>;
using Clock = std::chrono::steady_clock;

constexpr uint64_t kDefaultSeed = 20260117;
constexpr double kDefaultSeconds = 8;
constexpr int kMutations = 50000;
constexpr size_t kTruncateUpTo = 4096;  // longer files are not cut at every byte

std::vector<Bytes> ReadCorpus(const char* folder) {
  std::vector<std::filesystem::path> paths;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (entry.is_regular_file()) paths.push_back(entry.path());
  }
  std::sort(paths.begin(), paths.end());  // the directory's own order varies
  std::vector<Bytes> corpus;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    corpus.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return corpus;
}

void Run(const Bytes& input) {
  // An allocation of exactly this size, so that a sanitizer sees a read beyond the end.
  const auto copy = std::make_unique<uint8_t[]>(input.size());
  std::copy(input.begin(), input.end(), copy.get());
  LLVMFuzzerTestOneInput(copy.get(), input.size());
}

class Mutator {
 public:
  Mutator(uint64_t seed, const std::vector<Bytes>& corpus) : random_(seed), corpus_(corpus) {}

  Bytes Next() {
    Bytes bytes = corpus_[Below(corpus_.size())];
    for (size_t n = 1 + Below(8); n > 0; --n) MutateOnce(&bytes);
    return bytes;
  }

 private:
  size_t Below(size_t n) { return n == 0 ? 0 : random_() % n; }

  void MutateOnce(Bytes* b) {
    static constexpr uint8_t kLively[] = {0,   1,   0x7f, 0x80, 0xff, '"',  '{', '}', '[', ']',
                                          ',', ':', '0',  '9',  '-',  '\\', ' ', '/', '.', '('};
    const size_t at = Below(b->size() + 1);
    const size_t length = std::min(b->size() - at, 1 + Below(16));
    const auto position = b->begin() + static_cast<std::ptrdiff_t>(at);
    switch (Below(9)) {
      case 0:  // flip a bit
        if (length > 0) *position ^= static_cast<uint8_t>(1u << Below(8));
        break;
      case 1:  // another byte
        if (length > 0) *position = static_cast<uint8_t>(random_());
        break;
      case 2:
        if (length > 0) *position = kLively[Below(std::size(kLively))];
        break;
      case 3:  // insert
        b->insert(position, kLively[Below(std::size(kLively))]);
        break;
      case 4:  // remove
        b->erase(position, position + static_cast<std::ptrdiff_t>(length));
        break;
      case 5: {  // repeat
        const Bytes piece(position, position + static_cast<std::ptrdiff_t>(length));
        for (size_t n = 1 + Below(4); n > 0; --n) {
          b->insert(b->begin() + static_cast<std::ptrdiff_t>(at), piece.begin(), piece.end());
        }
        break;
      }
      case 6:  // an extreme number
        for (size_t i = 0; i < std::min<size_t>(length, 8); ++i) {
          position[static_cast<std::ptrdiff_t>(i)] = Below(2) ? 0xff : 0x00;
        }
        break;
      case 7: {  // a stretch of another input
        const Bytes& other = corpus_[Below(corpus_.size())];
        const size_t from = Below(other.size());
        const size_t n = std::min(other.size() - from, 1 + Below(64));
        const auto begin = other.begin() + static_cast<std::ptrdiff_t>(from);
        b->insert(position, begin, begin + static_cast<std::ptrdiff_t>(n));
        break;
      }
      default:  // cut
        if (Below(4) == 0) b->resize(at);
        break;
    }
  }

  std::mt19937_64 random_;
  const std::vector<Bytes>& corpus_;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: %s CORPUS_FOLDER [SEED] [SECONDS]\n", argv[0]);
    return 2;
  }
  const uint64_t seed = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : kDefaultSeed;
  const double seconds = argc > 3 ? std::strtod(argv[3], nullptr) : kDefaultSeconds;
  const std::vector<Bytes> corpus = ReadCorpus(argv[1]);
  if (corpus.empty()) {
    std::fprintf(stderr, "no files in %s\n", argv[1]);
    return 2;
  }
  std::printf("%zu seed inputs, mutation seed %llu\n", corpus.size(),
              static_cast<unsigned long long>(seed));
  std::fflush(stdout);
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  size_t truncations = 0, mutations = 0;
  Run({});
  for (const Bytes& input : corpus) Run(input);
  for (const Bytes& input : corpus) {
    for (size_t n = 0; n < input.size() && input.size() <= kTruncateUpTo && Clock::now() < end;
         ++n, ++truncations) {
      Run(Bytes(input.begin(), input.begin() + static_cast<std::ptrdiff_t>(n)));
    }
  }
  Mutator mutator(seed, corpus);
  for (; mutations < kMutations && Clock::now() < end; ++mutations) Run(mutator.Next());
  std::printf("ran %zu truncations and %zu mutations\n", truncations, mutations);
  return 0;
}
