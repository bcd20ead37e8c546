// Encoding and decoding of page-heads on one core, in MB/s of bf16 rows, beside two floors of the
// same run: the fp32 multiply-adds of the transform at the rate of the matrix library, and a memcpy
// of the same rows.
//
// Work per row of head_dim 128: 256 bytes in; the transform is 128 * 128 multiply-adds; 32 + 4
// bytes out.
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "bench/kernels/timing.h"
#include "kernels/gemm/gemm.h"
#include "kernels/q2_encode/op.h"
#include "kernels/q2_encode/shaped.h"

namespace oscarkv::kernels {
namespace {

constexpr int kPages = 64;  // 1 MB of rows at head_dim 128: larger than L1, within L2 and L3

// The time does not depend on the values of the metric: none is given.
void EncodeShaped(int d, const std::vector<Bf16>& rows, int sweeps, std::vector<uint8_t>* pages) {
  const std::vector<float> zeros(d * d), weight(d, 1.0f);
  ShapedArgs args;
  args.head_dim = d;
  args.row_stride = d;
  args.metric = {zeros.data(), zeros.data(), weight.data(), weight.data(), static_cast<float>(d)};
  args.sweeps = sweeps;
  for (int p = 0; p < kPages; ++p) {
    args.rows = rows.data() + p * kPageTokens * d;
    args.page_head = pages->data() + p * PageHeadBytes(d);
    EncodePageHeadShaped(Backend::kCpu, args, nullptr);
  }
}

void Report(int d) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<Bf16> rows(kPages * kPageTokens * d);
  for (Bf16& v : rows) v = ToBf16(normal(rng));
  std::vector<float> transform(d * d);
  for (float& v : transform) v = normal(rng) * 0.09f;
  std::vector<uint8_t> pages(kPages * PageHeadBytes(d));
  std::vector<float> decoded(kPageTokens * d);
  std::vector<Bf16> copy(rows.size());
  const double mb = rows.size() * 2 / 1e6;

  const auto encode = [&](Backend backend, const float* matrix, Side side, float clip) {
    return bench::TimePerCall([&, backend, matrix, side, clip] {
      EncodeArgs args;
      args.head_dim = d;
      args.side = side;
      args.row_stride = d;
      args.transform = matrix;
      args.clip_ratio = clip;
      for (int p = 0; p < kPages; ++p) {
        args.rows = rows.data() + p * kPageTokens * d;
        args.page_head = pages.data() + p * PageHeadBytes(d);
        EncodePageHead(backend, args, nullptr);
      }
    });
  };
  const double with = encode(Backend::kCpu, transform.data(), Side::kKey, 0.96f);
  const double without = encode(Backend::kCpu, nullptr, Side::kKey, 0.96f);
  const double value = encode(Backend::kCpu, nullptr, Side::kValue, 0.92f);
  const double unclipped = encode(Backend::kCpu, nullptr, Side::kKey, 0);
  const double reference = encode(Backend::kRef, nullptr, Side::kKey, 0.96f);
  const double to_float = bench::TimePerCall([&] {
    for (int p = 0; p < kPages; ++p)
      DecodePageHead(Backend::kCpu, d, Side::kKey, pages.data() + p * PageHeadBytes(d),
                     decoded.data());
  });
  const double to_bf16 = bench::TimePerCall([&] {
    for (int p = 0; p < kPages; ++p) {
      DecodePageHeadBf16(Backend::kCpu, d, Side::kKey, pages.data() + p * PageHeadBytes(d),
                         copy.data() + p * kPageTokens * d, d);
    }
  });
  const double copying =
      bench::TimePerCall([&] { std::memcpy(copy.data(), rows.data(), rows.size() * 2); });
  const auto weight = PackedWeight::Create(transform.data(), d, d, Compute::kFp32);
  std::vector<float> x(512 * d, 1.0f), y(512 * d);
  const double gemm = bench::TimePerCall([&] { weight->Run(x.data(), 512, nullptr, y.data()); }) *
                      kPages * kPageTokens / 512;

  std::printf("head_dim %d, %d page-heads of 64 rows, one core; MB/s of bf16 rows\n", d, kPages);
  std::printf(
      "  encode K with transform   %8.0f   target 150; %.2fx the time of the fp32 products alone\n",
      mb / with, with / gemm);
  std::printf("  encode K                  %8.0f   %.1fx the reference\n", mb / without,
              reference / without);
  std::printf("  encode V                  %8.0f\n", mb / value);
  std::printf("  encode K without clip     %8.0f\n", mb / unclipped);
  for (const int sweeps : {0, 1, 2}) {
    const double shaped = bench::TimePerCall([&] { EncodeShaped(d, rows, sweeps, &pages); });
    std::printf(
        "  shaped, %d sweeps          %8.0f   %.2fx the time of K with transform, with its own "
        "%.2fx\n",
        sweeps, mb / shaped, shaped / with, (shaped + with - without) / with);
  }
  std::printf("  decode to fp32            %8.0f\n", mb / to_float);
  std::printf("  decode to bf16            %8.0f   %.1fx the time of memcpy\n", mb / to_bf16,
              to_bf16 / copying);
  std::printf("  floors: fp32 products     %8.0f   memcpy %.0f\n", mb / gemm, mb / copying);
}

// Every encoder once over the same rows, for callgrind: the inclusive counts of EncodePageHead and
// EncodePageHeadShaped are those of 64 page-heads with transform, and of 64 with two sweeps.
void Once(int d) {
  const std::vector<Bf16> rows(kPages * kPageTokens * d, ToBf16(0.5f));
  const std::vector<float> transform(d * d, 0.09f);
  std::vector<uint8_t> pages(kPages * PageHeadBytes(d));
  EncodeArgs args;
  args.head_dim = d;
  args.row_stride = d;
  args.transform = transform.data();
  args.clip_ratio = 0.96f;
  for (int p = 0; p < kPages; ++p) {
    args.rows = rows.data() + p * kPageTokens * d;
    args.page_head = pages.data() + p * PageHeadBytes(d);
    EncodePageHead(Backend::kCpu, args, nullptr);
  }
  EncodeShaped(d, rows, 2, &pages);
}

}  // namespace
}  // namespace oscarkv::kernels

int main(int argc, char** argv) {
  if (argc == 2 && std::strcmp(argv[1], "--once") == 0) {
    oscarkv::kernels::Once(128);
    return 0;
  }
  oscarkv::kernels::SetGemmThreads(1);
  oscarkv::kernels::Report(128);
  oscarkv::kernels::Report(64);
}
