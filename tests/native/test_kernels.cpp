// Every kernel of every instruction set that runs here: the bits of the scalar build at every tail,
// on buffers without a float to spare; and the scalar build against double precision.

#include <cmath>

#include "emulate_vnni.h"
#include "linear/quantize.h"
#include "linear/packed_linear.h"
#include "expect.h"

using namespace minifuse;
using namespace minifuse::test;

namespace {

const InstructionSet& scalar() { return select_isa("scalar"); }

std::vector<float> linear(const InstructionSet& isa, WeightType type, int64_t M, int64_t N,
                          int64_t K, Activation activation, bool with_norm) {
  const auto x = random_floats(M * K, 1), w = random_floats(N * K, 2), b = random_floats(N, 3);
  const auto residual = random_floats(M * N, 4), gamma = random_floats(N, 5);
  const LinearKernels& kernels = isa.linear(type);
  PackedLinear packed(kernels.format, N, K);
  if (type == WeightType::kInt8 && K % 2 == 1) {
    std::vector<float> input_scale(static_cast<size_t>(K));
    smoothing_scales(w.data(), K, N, K, random_floats(K, 6).data(), input_scale.data());
    std::vector<int8_t> codes(static_cast<size_t>(N * K));
    std::vector<float> scale(static_cast<size_t>(int8_groups(K) * N));
    quantize_rows(w.data(), K, N, K, input_scale.data(), nullptr, codes.data(), scale.data(), N);
    EXPECT(are_weight_codes(codes.data(), N, K), "K %d", static_cast<int>(K));
    packed.pack_codes(codes.data(), scale.data(), input_scale.data());
  } else {
    packed.pack(w.data(), K, 0, packed.num_panels);
  }
  BufferOf<std::byte> scratch(kernels.scratch_bytes(M, K));
  std::fill(scratch.data(), scratch.data() + scratch.size(), std::byte{0xFF});
  std::vector<float> y(static_cast<size_t>(M * N));
  LinearParams params =
      with_scratch(packed.params(x.data(), K, y.data(), N, M, activation), scratch);
  params.bias = b.data();
  if (with_norm) {
    kernels.linear_residual_layer_norm(params, {.x = y.data(),
                                                .ldx = N,
                                                .residual = residual.data(),
                                                .ldr = N,
                                                .gamma = gamma.data(),
                                                .beta = b.data(),
                                                .eps = 1e-5f,
                                                .y = y.data(),
                                                .ldy = N,
                                                .M = M,
                                                .H = N});
  } else {
    kernels.linear(params);
  }
  return y;
}

void test_linear(const InstructionSet& isa, WeightType type) {
  const int t = static_cast<int>(type);
  for (const int64_t N : {0, 1, 7, 15, 16, 17, 31, 32, 33, 47, 64, 65})
    for (const int64_t K : {0, 1, 2, 3, 5, 13, 31})
      for (int64_t M = 0; M <= 2 * kMaxTileRows + 1; M += M < 14 ? 1 : 5)
        EXPECT(same_bits(linear(isa, type, M, N, K, Activation::kNone, false),
                         linear(scalar(), type, M, N, K, Activation::kNone, false)),
               "%s type %d M=%d N=%d K=%d", isa.name, t, int(M), int(N), int(K));
  for (const Activation activation : {Activation::kGelu, Activation::kGeluNew, Activation::kRelu})
    EXPECT(same_bits(linear(isa, type, 13, 49, 11, activation, false),
                     linear(scalar(), type, 13, 49, 11, activation, false)),
           "%s type %d activation %d", isa.name, t, int(activation));
  for (const int64_t N : {1, 16, 37, 100})
    for (const int64_t M : {0, 1, 4, 5, 29})
      EXPECT(same_bits(linear(isa, type, M, N, 17, Activation::kNone, true),
                       linear(scalar(), type, M, N, 17, Activation::kNone, true)),
             "%s type %d with LayerNorm M=%d N=%d", isa.name, t, int(M), int(N));
}

std::vector<float> attention(const Kernels& k, int64_t sq, int64_t sk, int64_t D,
                             const std::vector<int32_t>& keys) {
  constexpr int64_t kHeads = 2;
  const int64_t rows = keys.empty() ? sk : keys.back() + 1;
  const auto q = random_floats(sq * kHeads * D, 1), key = random_floats(rows * kHeads * D, 2);
  const auto v = random_floats(rows * kHeads * D, 3);
  std::vector<float> out(static_cast<size_t>(sq * kHeads * D));
  const Buffer scratch(attention_scratch_floats(sk, D));
  k.attention({.q = {q.data(), kHeads * D, D},
               .k = {key.data(), kHeads * D, D},
               .v = {v.data(), kHeads * D, D},
               .out = {out.data(), kHeads * D, D},
               .seqlen_q = sq,
               .seqlen_k = sk,
               .head_dim = D,
               .key_index = keys.empty() ? nullptr : keys.data(),
               .head_begin = 0,
               .head_end = kHeads,
               .scale = 0.2f,
               .scratch = const_cast<float*>(scratch.data())});
  return out;
}

void test_attention(const InstructionSet& isa) {
  const Kernels &k = isa.kernels, &reference = scalar().kernels;
  for (const int64_t D : {1, 5, 16, 26, 32, 48, 64, 128, 256})
    for (const int64_t sk : {1, 3, 15, 16, 17, 32, 33, 70})
      for (const int64_t sq : {1, 2, 6, 7, 12, 13, 25})
        EXPECT(same_bits(attention(k, sq, sk, D, {}), attention(reference, sq, sk, D, {})),
               "%s sq=%d sk=%d D=%d", isa.name, int(sq), int(sk), int(D));
  EXPECT(same_bits(attention(k, 9, 3, 32, {1, 4, 8}), attention(reference, 9, 3, 32, {1, 4, 8})),
         "%s with key_index", isa.name);
}

std::vector<float> rows_of(const Kernels& k, int64_t M, int64_t H) {
  const auto word = random_floats(5 * H, 1), position = random_floats(M * H, 2);
  const auto gamma = random_floats(H, 3), beta = random_floats(H, 4);
  std::vector<int32_t> ids, positions;
  for (int64_t i = 0; i < M; ++i) {
    ids.push_back(static_cast<int32_t>(i * 7 % 5));
    positions.push_back(static_cast<int32_t>(i));
  }
  std::vector<float> x(static_cast<size_t>(M * H));
  k.embed_layer_norm({.ids = ids.data(),
                      .positions = positions.data(),
                      .word = word.data(),
                      .position = position.data(),
                      .gamma = gamma.data(),
                      .beta = beta.data(),
                      .eps = 1e-12f,
                      .y = x.data(),
                      .ldy = H,
                      .M = M,
                      .H = H});
  std::vector<uint8_t> mask(static_cast<size_t>(M), 1);
  if (M > 2) mask[1] = 0;
  for (const Pooling pooling : {Pooling::kMean, Pooling::kCls, Pooling::kMax, Pooling::kMeanSqrtLen,
                                Pooling::kWeightedMean, Pooling::kLastToken}) {
    std::vector<float> y(static_cast<size_t>(H));
    k.pool({.x = x.data(),
            .ldx = H,
            .mask = mask.data(),
            .y = y.data(),
            .first_row = M > 4 ? 2 : 0,
            .num_rows = M,
            .H = H,
            .pooling = pooling});
    k.l2_normalize(y.data(), H, 1, H);
    x.insert(x.end(), y.begin(), y.end());
  }
  return x;
}

void test_rows(const InstructionSet& isa) {
  for (const int64_t H : {1, 3, 15, 16, 17, 33, 64, 100})
    for (const int64_t M : {0, 1, 3, 4, 5, 9})
      EXPECT(same_bits(rows_of(isa.kernels, M, H), rows_of(scalar().kernels, M, H)), "%s M=%d H=%d",
             isa.name, int(M), int(H));
}

void test_vector_math(const InstructionSet& isa) {
  for (int64_t n = 0; n < 300; n += n < 40 ? 1 : 37) {
    const auto x = random_floats(n, 9, 4.0f);
    std::vector<float> ours(x.size()), theirs(x.size());
    for (const auto& f : {&Kernels::exp, &Kernels::erf}) {
      (isa.kernels.*f)(x.data(), ours.data(), n);
      (scalar().kernels.*f)(x.data(), theirs.data(), n);
      EXPECT(same_bits(ours, theirs), "%s n=%d", isa.name, int(n));
    }
    for (int64_t i = 0; i < n; ++i)
      EXPECT(std::fabs(theirs[static_cast<size_t>(i)] -
                       std::erf(double{x[static_cast<size_t>(i)]})) < 3e-7,
             "erf(%g)", x[static_cast<size_t>(i)]);
  }
}

// ---- the scalar build against the mathematics, in double precision -----------------------------

// Every factor that error may have grown by: the roundings of K products and sums, and a few more.
double roundings(int64_t K) { return static_cast<double>(K + 8) * std::ldexp(1.0, -24); }

void test_linear_is_exact() {
  for (const int64_t K : {0, 1, 13, 31})
    for (const int64_t N : {1, 17, 33})
      for (const int64_t M : {1, 5}) {
        const auto x = random_floats(M * K, 1), w = random_floats(N * K, 2);
        const auto b = random_floats(N, 3);
        const auto y = linear(scalar(), WeightType::kFloat32, M, N, K, Activation::kNone, false);
        for (int64_t m = 0; m < M; ++m)
          for (int64_t n = 0; n < N; ++n) {
            double exact = b[static_cast<size_t>(n)], size = std::fabs(exact);
            for (int64_t k = 0; k < K; ++k) {
              const double product = double{x[static_cast<size_t>(m * K + k)]} *
                                     double{w[static_cast<size_t>(n * K + k)]};
              exact += product;
              size += std::fabs(product);
            }
            const double error = y[static_cast<size_t>(m * N + n)] - exact;
            EXPECT(std::fabs(error) <= roundings(K) * size, "M=%d N=%d K=%d: off by %g", int(M),
                   int(N), int(K), error);
          }
      }
}

// x0 w0 + x1 w1 with one rounding for each product and its sum, where two would show: sums a hair from
// halfway between two floats, sums on it, and sums below the normal floats.
void test_a_sum_is_rounded_once(const InstructionSet& isa) {
  constexpr int64_t kM = 4096, kN = 16, kK = 2;
  std::mt19937 generator(8);
  const auto choose = [&](auto... values) {
    const float all[] = {static_cast<float>(values)...};
    return all[generator() % std::size(all)];
  };
  const auto nearly_one = [&](int bits) { return 1 + choose(-1, 0, 1) * std::ldexp(1.0f, -bits); };
  std::vector<float> x(kM * kK), w(kN * kK), y(kM * kN);
  for (size_t m = 0; m < kM; ++m) {
    x[m * 2] = choose(1, 1 + 0x1p-23, 1.5, -1, 0, 0x1p-126, 0x1.8p-140, 0x1.000004p-127);
    x[m * 2 + 1] = choose(0x1p-24, 0x1p-23, -0x1p-25, 3, 0, 0x1p-130, 0x1p-75) * nearly_one(15);
  }
  for (size_t n = 0; n < kN; ++n) {
    w[n * 2] = nearly_one(12);
    w[n * 2 + 1] = nearly_one(15) * choose(1, 1, 0x1p-10, 0x1p-20);
  }
  w[0] = w[2] = 1;
  w[1] = 1 - 0x1p-15f;
  w[3] = w[1] * 0x1p-75f;  // a subnormal sum of more than 53 bits, near halfway
  const LinearKernels& kernels = isa.linear(WeightType::kFloat32);
  PackedLinear packed(kernels.format, kN, kK);
  packed.pack(w.data(), kK, 0, packed.num_panels);
  BufferOf<std::byte> scratch(kernels.scratch_bytes(kM, kK));
  kernels.linear(
      with_scratch(packed.params(x.data(), kK, y.data(), kN, kM, Activation::kNone), scratch));
  for (size_t m = 0; m < kM; ++m)
    for (size_t n = 0; n < kN; ++n) {
      const float wanted = std::fma(x[m * 2 + 1], w[n * 2 + 1], x[m * 2] * w[n * 2]);
      EXPECT(y[m * kN + n] == wanted, "%s: %a * %a + %a * %a is %a, wanted %a", isa.name, x[m * 2],
             w[n * 2], x[m * 2 + 1], w[n * 2 + 1], y[m * kN + n], wanted);
    }
}

void test_layer_norm_is_exact() {
  constexpr int64_t kH = 37;
  const auto x = random_floats(kH, 1), residual = random_floats(kH, 2);
  const auto gamma = random_floats(kH, 3), beta = random_floats(kH, 4);
  std::vector<float> y(kH);
  scalar().kernels.layer_norm({.x = x.data(),
                               .ldx = kH,
                               .residual = residual.data(),
                               .ldr = kH,
                               .gamma = gamma.data(),
                               .beta = beta.data(),
                               .eps = 1e-5f,
                               .y = y.data(),
                               .ldy = kH,
                               .M = 1,
                               .H = kH});
  double mean = 0, variance = 0;
  for (size_t i = 0; i < kH; ++i) mean += (double{x[i]} + double{residual[i]}) / kH;
  for (size_t i = 0; i < kH; ++i)
    variance += std::pow(double{x[i]} + double{residual[i]} - mean, 2) / kH;
  for (size_t i = 0; i < kH; ++i) {
    const double unit = (double{x[i]} + double{residual[i]} - mean) / std::sqrt(variance + 1e-5);
    const double exact = unit * double{gamma[i]} + double{beta[i]};
    EXPECT(std::fabs(y[i] - exact) <=
               1e-6 * (std::fabs(unit * double{gamma[i]}) + std::fabs(exact) + 1),
           "LayerNorm: %g, wanted %g", double{y[i]}, exact);
  }
}

void test_attention_is_exact() {
  constexpr int64_t kHeads = 2;
  for (const int64_t D : {5, 32})
    for (const int64_t S : {1, 7, 33}) {
      const int64_t width = kHeads * D;
      const auto q = random_floats(S * width, 1), k = random_floats(S * width, 2);
      const auto v = random_floats(S * width, 3);
      const auto out = attention(scalar().kernels, S, S, D, {});
      const auto at = [&](const std::vector<float>& rows, int64_t row, int64_t column) {
        return double{rows[static_cast<size_t>(row * width + column)]};
      };
      for (int64_t i = 0; i < S; ++i)
        for (int64_t h = 0; h < kHeads; ++h) {
          std::vector<double> weight(static_cast<size_t>(S));
          double total = 0;
          for (int64_t j = 0; j < S; ++j) {
            double score = 0;
            for (int64_t d = h * D; d < (h + 1) * D; ++d) score += at(q, i, d) * at(k, j, d);
            total += weight[static_cast<size_t>(j)] = std::exp(double{0.2f} * score);
          }
          for (int64_t d = h * D; d < (h + 1) * D; ++d) {
            double exact = 0, size = 0;
            for (int64_t j = 0; j < S; ++j) {
              const double product = weight[static_cast<size_t>(j)] / total * at(v, j, d);
              exact += product;
              size += std::fabs(product);
            }
            EXPECT(std::fabs(at(out, i, d) - exact) <= 8 * roundings(S + D) * size,
                   "attention S=%d D=%d: %g, wanted %g", int(S), int(D), at(out, i, d), exact);
          }
        }
    }
}

// Blocks, tiles and groups of which every part may be the last, in int8.
void test_amx(const InstructionSet& amx) {
  constexpr WeightType kType = WeightType::kInt8;
  test_linear(amx, kType);
  for (const int64_t K : {63, 64, 65, 191, 192, 193, 400})
    for (const int64_t N : {5, 32, 33})
      for (const int64_t M : {1, 15, 16, 17, 32, 33, 48, 49, 100})
        EXPECT(same_bits(linear(amx, kType, M, N, K, Activation::kGelu, false),
                         linear(scalar(), kType, M, N, K, Activation::kGelu, false)),
               "%s M=%d N=%d K=%d", amx.name, int(M), int(N), int(K));
  for (const int64_t M : {511, 512, 513, 700})  // several blocks
    EXPECT(same_bits(linear(amx, kType, M, 40, 200, Activation::kNone, true),
                     linear(scalar(), kType, M, 40, 200, Activation::kNone, true)),
           "%s M=%d", amx.name, int(M));
  std::printf("%s: int8 as the scalar build's\n", amx.name);
}

// VNNI where the CPU has all but vpdpbusd.
void test_emulated_vnni() {
#if defined(__x86_64__) && defined(__linux__)
  for (const char* base : {"avx2", "avx512"}) {
    const InstructionSet* vnni = nullptr;
    bool has_base = false;
    for (const InstructionSet& isa : instruction_sets()) {
      if (isa.name == std::string(base) + "_vnni") vnni = &isa;
      if (isa.name == std::string(base)) has_base = isa.is_supported();
    }
    if (vnni->is_supported() || !has_base) continue;
    install_vpdpbusd();
    num_emulated = 0;
    test_linear(*vnni, WeightType::kInt8);
    EXPECT(num_emulated > 0, "not one vpdpbusd ran");
    std::printf("%s: int8 as the scalar build's, vpdpbusd emulated\n", vnni->name);
  }
#endif
}

}  // namespace

int main() {
  test_linear_is_exact();
  test_layer_norm_is_exact();
  test_attention_is_exact();
  for (const InstructionSet* isa : runnable_sets()) {
    test_a_sum_is_rounded_once(*isa);
    test_linear(*isa, WeightType::kFloat32);
    if (!isa->multiplies_pairs)
      test_linear(*isa, WeightType::kBfloat16);  // else: test_bfloat16.cpp
    test_linear(*isa, WeightType::kInt8);
    test_attention(*isa);
    test_rows(*isa);
    test_vector_math(*isa);
    std::printf("%s: kernels as the scalar build's\n", isa->name);
  }
  test_amx(emulated_amx());
  for (const InstructionSet* isa : runnable_sets())
    if (isa->name == std::string("amx")) test_amx(*isa);
  test_emulated_vnni();
  expect_invalid("is not known", [] { select_isa("sse2"); });
  return 0;
}
