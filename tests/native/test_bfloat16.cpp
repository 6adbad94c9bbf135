// The bfloat16 kernels that multiply in pairs, against double precision on the same rounded values:
// those of AVX-512 BF16 and of AMX where the CPU has them, and everywhere the same source on plain
// floats.

#if defined(__SSE2__)
#include <emmintrin.h>  // of vec_scalar.h
#endif
#include <cmath>

#include "cpu/dispatch.h"
#include "linear/quantize.h"
#include "linear/packed_linear.h"
#include "expect.h"

namespace emulated {
using namespace minifuse;
namespace {

#include "emulate_bfloat16.h"

#include "cpu/bfloat16_kernels.inl.h"

constexpr LinearKernels kLinear = linear_kernels<Bfloat16Dot>("emulated");

}  // namespace
}  // namespace emulated

using namespace minifuse;
using namespace minifuse::test;

namespace {

double rounded(float x) {
  uint16_t bits;
  to_bfloat16(&x, 1, &bits);
  const uint32_t word = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &word, 4);
  return value;
}

// The largest difference, each in units of the magnitudes that were summed; NaN where one is NaN,
// which std::max would pass over.
double relative_error(const std::vector<float>& ours, const std::vector<double>& exact,
                      const std::vector<double>& magnitude) {
  double error = 0;
  for (size_t i = 0; i < exact.size(); ++i) {
    const double one = std::fabs(ours[i] - exact[i]) / magnitude[i];
    if (!(one <= error)) error = one;
    if (std::isnan(error)) return error;
  }
  return error;
}

std::vector<float> linear(const LinearKernels& kernels, int64_t M, int64_t N, int64_t K,
                          const std::vector<float>& x, const std::vector<float>& w,
                          const std::vector<float>& b) {
  PackedLinear packed(kernels.format, N, K);
  packed.pack(w.data(), K, 0, packed.num_panels);
  BufferOf<std::byte> scratch(kernels.scratch_bytes(M, K));
  std::fill(scratch.data(), scratch.data() + scratch.size(), std::byte{0xFF});  // not a number
  std::vector<float> y(static_cast<size_t>(M * N));
  LinearParams params =
      with_scratch(packed.params(x.data(), K, y.data(), N, M, Activation::kNone), scratch);
  params.bias = b.data();
  kernels.linear(params);
  return y;
}

void test_linear(const LinearKernels& kernels) {
  for (const int64_t N : {1, 15, 16, 31, 32, 33, 70})
    for (const int64_t K : {1, 2, 3, 5, 15, 16, 31, 33, 64, 97, 384})
      for (const int64_t M : {0, 1, 2, 11, 12, 13, 25}) {
        const auto x = random_floats(M * K, 1), w = random_floats(N * K, 2);
        const auto b = random_floats(N, 3);
        std::vector<double> exact(static_cast<size_t>(M * N)), magnitude(exact.size());
        for (int64_t m = 0; m < M; ++m)
          for (int64_t n = 0; n < N; ++n) {
            double sum = b[static_cast<size_t>(n)], total = std::fabs(sum);
            for (int64_t k = 0; k < K; ++k) {
              const double product = rounded(x[static_cast<size_t>(m * K + k)]) *
                                     rounded(w[static_cast<size_t>(n * K + k)]);
              sum += product;
              total += std::fabs(product);
            }
            exact[static_cast<size_t>(m * N + n)] = sum;
            magnitude[static_cast<size_t>(m * N + n)] = total;
          }
        const auto y = linear(kernels, M, N, K, x, w, b);
        const double error = relative_error(y, exact, magnitude);
        EXPECT(error < 6e-8 * (2 + std::sqrt(double(K))), "%s M=%d N=%d K=%d: %g",
               kernels.format.isa, int(M), int(N), int(K), error);
        for (int64_t m = 0; m < M; m += 5) {  // a row alone: the same bits
          const std::vector<float> row(x.begin() + m * K, x.begin() + (m + 1) * K);
          const std::vector<float> among(y.begin() + m * N, y.begin() + (m + 1) * N);
          EXPECT(same_bits(linear(kernels, 1, N, K, row, w, b), among), "%s row %d of %d",
                 kernels.format.isa, int(m), int(M));
        }
      }
}

// Beyond the rounding of q, k and v, a weight of the average is off by 2^-8 at most.
void test_attention(const char* isa, void (*attention)(const AttentionParams&)) {
  constexpr int64_t kHeads = 2;
  for (const int64_t D : {1, 5, 16, 26, 31, 32, 48, 64, 128, 256})
    for (const int64_t sk : {1, 2, 3, 16, 17, 32, 33, 70})
      for (const int64_t sq : {1, 7, 12, 13, 25})
        for (const bool with_index : {false, true}) {
          const bool with_bias = !with_index && sq <= sk;
          std::vector<int32_t> keys;
          for (int64_t i = 0; with_index && i < sk; ++i)
            keys.push_back(static_cast<int32_t>(2 * i + 1));
          const int64_t rows = with_index ? 2 * sk : sk, width = kHeads * D;
          const auto q = random_floats(sq * width, 1), k = random_floats(rows * width, 2);
          const auto v = random_floats(rows * width, 3);
          const int64_t bias_stride = relative_bias_stride(sk);
          const auto bias = random_floats(kHeads * bias_stride, 4);
          std::vector<float> out(static_cast<size_t>(sq * width));
          Buffer scratch(attention_scratch_floats(sk, D));
          attention({.q = {q.data(), width, D},
                     .k = {k.data(), width, D},
                     .v = {v.data(), width, D},
                     .out = {out.data(), width, D},
                     .seqlen_q = sq,
                     .seqlen_k = sk,
                     .head_dim = D,
                     .key_index = with_index ? keys.data() : nullptr,
                     .head_begin = 0,
                     .head_end = kHeads,
                     .scale = 0.2f,
                     .scratch = scratch.data(),
                     .bias = with_bias ? bias.data() + sk - 1 : nullptr,
                     .bias_stride = bias_stride});
          std::vector<double> exact(out.size()), magnitude(out.size());
          for (int64_t h = 0; h < kHeads; ++h)
            for (int64_t i = 0; i < sq; ++i) {
              std::vector<double> weight(static_cast<size_t>(sk));
              double total = 0;
              const auto at = [&](const std::vector<float>& x, int64_t row, int64_t d) {
                return rounded(x[static_cast<size_t>(row * width + h * D + d)]);
              };
              const auto row_of = [&](int64_t j) { return with_index ? 2 * j + 1 : j; };
              for (int64_t j = 0; j < sk; ++j) {
                double score = 0;
                for (int64_t d = 0; d < D; ++d) score += at(q, i, d) * at(k, row_of(j), d);
                const size_t place = static_cast<size_t>(h * bias_stride + sk - 1 + j - i);
                total += weight[static_cast<size_t>(j)] =
                    std::exp(0.2 * score + (with_bias ? double{bias[place]} : 0.0));
              }
              for (int64_t d = 0; d < D; ++d) {
                double sum = 0, sizes = 0;
                for (int64_t j = 0; j < sk; ++j) {
                  const double product = weight[static_cast<size_t>(j)] * at(v, row_of(j), d);
                  sum += product;
                  sizes += std::fabs(product);
                }
                exact[static_cast<size_t>(i * width + h * D + d)] = sum / total;
                magnitude[static_cast<size_t>(i * width + h * D + d)] = sizes / total;
              }
            }
          const double error = relative_error(out, exact, magnitude);
          EXPECT(error < 1.0 / 256 + 1e-5, "%s sq=%d sk=%d D=%d: %g", isa, int(sq), int(sk), int(D),
                 error);
        }
}

}  // namespace

int main() {
  test_linear(emulated::kLinear);
  test_attention(emulated::kLinear.format.isa, emulated::attention_bfloat16);
  test_linear(emulated_amx().kernels.bfloat16);
  for (const InstructionSet& isa : instruction_sets()) {
    if (!isa.multiplies_pairs) continue;
    if (!isa.is_supported()) {
      std::printf("%s: this CPU lacks it; only its source ran\n", isa.name);
      continue;
    }
    test_linear(isa.kernels.bfloat16);
    if (isa.kernels.attention_bfloat16 != isa.kernels.attention)
      test_attention(isa.name, isa.kernels.attention_bfloat16);
    std::printf("%s: bfloat16 in pairs as double precision\n", isa.name);
  }
  return 0;
}
