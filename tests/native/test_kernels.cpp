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

using Attention = void (*)(const AttentionParams& params);

// The keys that a query attends to, where these are not all of its sentence.
struct Reach {
  std::vector<int32_t> keys = {};
  int64_t before = kAllKeys, after = kAllKeys;
  bool with_bias = false;
};

constexpr int64_t kHeads = 2;
constexpr float kScale = 0.2f;

std::vector<float> attention_bias(int64_t sk) {
  return random_floats(kHeads * relative_bias_stride(sk), 4);
}

std::vector<float> attention(Attention kernel, int64_t sq, int64_t sk, int64_t D,
                             const Reach& reach = {}) {
  const int64_t rows = reach.keys.empty() ? sk : reach.keys.back() + 1;
  const auto q = random_floats(sq * kHeads * D, 1), key = random_floats(rows * kHeads * D, 2);
  const auto v = random_floats(rows * kHeads * D, 3), bias = attention_bias(sk);
  std::vector<float> out(static_cast<size_t>(sq * kHeads * D));
  const Buffer scratch(attention_scratch_floats(sk, D));
  AttentionParams p{.q = {q.data(), kHeads * D, D},
                    .k = {key.data(), kHeads * D, D},
                    .v = {v.data(), kHeads * D, D},
                    .out = {out.data(), kHeads * D, D},
                    .seqlen_q = sq,
                    .seqlen_k = sk,
                    .head_dim = D,
                    .key_index = reach.keys.empty() ? nullptr : reach.keys.data(),
                    .head_begin = 0,
                    .head_end = kHeads,
                    .scale = kScale,
                    .scratch = const_cast<float*>(scratch.data()),
                    .bias = reach.with_bias ? bias.data() + sk - 1 : nullptr,
                    .bias_stride = relative_bias_stride(sk),
                    .keys_before = reach.before,
                    .keys_after = reach.after};
  kernel(p);
  // In parts, as calls that can be stopped do it.
  const std::vector<float> whole = out;
  for (const int64_t middle : {sq / 3, sq / 2}) {
    p.query_begin = 0, p.query_end = middle;
    if (middle > 0) kernel(p);
    p.query_begin = middle, p.query_end = kAllQueries;
    kernel(p);
    EXPECT(same_bits(out, whole), "in parts, sq=%d sk=%d D=%d", int(sq), int(sk), int(D));
  }
  return out;
}

const Reach kReaches[] = {{.keys = {1, 4, 8}},
                          {.before = 300, .after = 0},
                          {.before = 3, .after = 3},
                          {.before = 60, .after = 0},
                          {.after = 0},
                          {.with_bias = true},
                          {.before = 5, .after = 70, .with_bias = true}};

void test_attention(const InstructionSet& isa, Kernel<void(const AttentionParams&)> Kernels::* at) {
  const Attention here = isa.kernels.*at, there = scalar().kernels.*at;
  for (const int64_t D : {1, 5, 16, 26, 32, 48, 64, 128, 256})
    for (const int64_t sk : {1, 3, 15, 16, 17, 32, 33, 70})
      for (const int64_t sq : {1, 2, 6, 7, 12, 13, 25})
        EXPECT(same_bits(attention(here, sq, sk, D), attention(there, sq, sk, D)),
               "%s sq=%d sk=%d D=%d", isa.name, int(sq), int(sk), int(D));
  for (const Reach& reach : kReaches)
    for (const int64_t S : {3, 100, 530}) {
      if (!reach.keys.empty() && S > 3) continue;
      EXPECT(same_bits(attention(here, S, S, 32, reach), attention(there, S, S, 32, reach)),
             "%s S=%d before=%d after=%d bias %d", isa.name, int(S), int(reach.before),
             int(reach.after), int(reach.with_bias));
    }
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

// By how much the kernel of 16-bit integers may differ: half a step of each value of q, k and v and of
// each weight, beside the error of its exponentials. The largest values are those of a head.
struct WordError {
  static constexpr double kHalfValue = 1 / 2046.0, kHalfWeight = 1 / 65534.0, kExponential = 1e-4;
  double q_most = 0, k_most = 0;

  double of_weight(const float* q, const float* k, int64_t D) const {
    const double steps =
        2 * (std::min(32767.0, std::sqrt(2147483648.0 / static_cast<double>(D))) - 2);
    double error = 0;
    for (int64_t d = 0; d < D; ++d)
      error += (std::fabs(double{q[d]}) * k_most + std::fabs(double{k[d]}) * q_most +
                q_most * k_most / steps) /
               steps;
    return std::expm1(double{kScale} * error) + kExponential;
  }
};

void test_attention_is_exact(const char* name, Attention kernel, bool is_words,
                             const Reach& reach = {}) {
  for (const int64_t D : {5, 32, 80})
    for (const int64_t S : {1, 7, 33, 300}) {
      const int64_t width = kHeads * D;
      const auto q = random_floats(S * width, 1), k = random_floats(S * width, 2);
      const auto v = random_floats(S * width, 3), bias = attention_bias(S);
      const auto out = attention(kernel, S, S, D, reach);
      const auto at = [&](const std::vector<float>& rows, int64_t row, int64_t column) {
        return double{rows[static_cast<size_t>(row * width + column)]};
      };
      WordError words[kHeads];
      for (int64_t i = 0; i < S * width; ++i) {
        WordError& of_head = words[i % width / D];
        of_head.q_most = std::max(of_head.q_most, std::fabs(double{q[static_cast<size_t>(i)]}));
        of_head.k_most = std::max(of_head.k_most, std::fabs(double{k[static_cast<size_t>(i)]}));
      }
      for (int64_t i = 0; i < S; ++i)
        for (int64_t h = 0; h < kHeads; ++h) {
          const int64_t first = std::max<int64_t>(0, i - reach.before);
          const int64_t last = std::min(S - 1, i + reach.after);
          std::vector<double> weight(static_cast<size_t>(S)), error(static_cast<size_t>(S));
          double total = 0, most = 0;
          for (int64_t j = first; j <= last; ++j) {
            const size_t key = static_cast<size_t>(j);
            double score = 0;
            for (int64_t d = h * D; d < (h + 1) * D; ++d) score += at(q, i, d) * at(k, j, d);
            score *= double{kScale};
            if (reach.with_bias)
              score +=
                  double{bias[static_cast<size_t>(h * relative_bias_stride(S) + S - 1 + j - i)]};
            total += weight[key] = std::exp(score);
            most = std::max(most, weight[key]);
            if (is_words)
              error[key] = words[static_cast<size_t>(h)].of_weight(
                  &q[static_cast<size_t>(i * width + h * D)],
                  &k[static_cast<size_t>(j * width + h * D)], D);
          }
          for (int64_t d = h * D; d < (h + 1) * D; ++d) {
            double exact = 0, size = 0, allowed = 0, column = 0;
            for (int64_t j = 0; j < S; ++j) column = std::max(column, std::fabs(at(v, j, d)));
            for (int64_t j = first; j <= last; ++j) {
              const double product = weight[static_cast<size_t>(j)] / total * at(v, j, d);
              exact += product;
              size += std::fabs(product);
            }
            for (int64_t j = first; is_words && j <= last; ++j) {
              const double off =
                  weight[static_cast<size_t>(j)] * error[static_cast<size_t>(j)] +
                  most * WordError::kHalfWeight * (1 + error[static_cast<size_t>(j)]);
              allowed += off / total * (std::fabs(at(v, j, d)) + std::fabs(exact));
            }
            if (is_words) allowed = 1.01 * (allowed + column * WordError::kHalfValue);
            EXPECT(std::fabs(at(out, i, d) - exact) <= allowed + 8 * roundings(S + D) * size,
                   "%s S=%d D=%d: %g, wanted %g", name, int(S), int(D), at(out, i, d), exact);
          }
        }
    }
}

// One head of queries [sq, D] on keys and values [sk, D].
std::vector<float> one_head(Attention kernel, const std::vector<float>& q,
                            const std::vector<float>& k, const std::vector<float>& v, int64_t D,
                            float scale) {
  const int64_t sq = static_cast<int64_t>(q.size()) / D, sk = static_cast<int64_t>(k.size()) / D;
  std::vector<float> out(q.size());
  Buffer scratch(attention_scratch_floats(sk, D));
  kernel({.q = {q.data(), D, D},
          .k = {k.data(), D, D},
          .v = {v.data(), D, D},
          .out = {out.data(), D, D},
          .seqlen_q = sq,
          .seqlen_k = sk,
          .head_dim = D,
          .head_begin = 0,
          .head_end = 1,
          .scale = scale,
          .scratch = scratch.data()});
  return out;
}

// A value that is no number reaches what is computed from it, which in integers is all that shares its
// scale; equal keys are averaged, also where the sums of codes are as large as they get.
void test_attention_of_extremes(const InstructionSet& isa) {
  constexpr int64_t S = 600, D = 32;
  for (const Attention kernel :
       {Attention{isa.kernels.attention}, Attention{isa.kernels.attention_int16}})
    for (const float value : {1.0f, 1e-38f, 1e30f, NAN, INFINITY})
      for (int which = 0; which < 3; ++which) {
        std::vector<float> qkv[3];
        for (int i = 0; i < 3; ++i) qkv[i] = std::vector<float>(S * D, i == 2 ? 1.0f : 0.0f);
        constexpr size_t kRow = 270, kColumn = 7;
        qkv[which][kRow * D + kColumn] = value;
        const auto out = one_head(kernel, qkv[0], qkv[1], qkv[2], D, kScale);
        for (size_t i = 0; i < out.size(); ++i) {
          // The row of a query in float32; in integers the whole head shares a scale.
          const bool is_row = which == 0 && kernel == Attention{isa.kernels.attention};
          const bool is_reached = which == 2 ? i % D == kColumn : !is_row || i / D == kRow;
          const bool is_number = std::isfinite(value) || !is_reached;
          // All values but one are 1. What that one changes lies below the step of its column.
          const double wanted = which == 2 && is_reached ? 1.0 + (double{value} - 1.0) / S : 1.0;
          const double step = which == 2 && is_reached ? std::max(1.0, double{value}) / 2046 : 0.0;
          EXPECT(is_number ? std::fabs(double{out[i]} - wanted) <= step + 1e-5 * std::fabs(wanted)
                           : !std::isfinite(out[i]),
                 "%s which %d value %g at %d: %g", isa.name, which, double{value}, int(i),
                 double{out[i]});
        }
      }
}

// One key has almost all of the weight and the value 0, the many others have the value 1: what they count
// together is kept, however little each counts.
void test_attention_to_one_key(const InstructionSet& isa) {
  constexpr int64_t D = 16;
  for (const int64_t S : {100, 2048, 2049, 6000})
    for (const float gap : {3.0f, 7.0f, 9.0f, 10.0f, 11.0f, 12.0f}) {
      std::vector<float> q(D, 0.0f), k(S * D, 0.0f), v(S * D, 1.0f);
      q[0] = 1.0f, k[0] = gap;
      for (size_t d = 0; d < D; ++d) v[d] = 0.0f;
      const auto out = one_head(isa.kernels.attention_int16, q, k, v, D, 1.0f);
      const double others = static_cast<double>(S - 1) * std::exp(-double{gap});
      // Float32 adds one weight after the other.
      const double few = static_cast<double>(S <= 2048 ? S : 0) * WordError::kHalfWeight;
      const double allowed = few + 1e-4;
      for (const float share : out)
        EXPECT(std::fabs(double{share} - others / (1 + others)) <= allowed, "%s S=%d gap %g: %g",
               isa.name, int(S), double{gap}, double{share});
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

// VNNI where the CPU has all but its instructions.
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
    install_vnni();
    num_emulated = 0;
    test_linear(*vnni, WeightType::kInt8);
    EXPECT(num_emulated > 0, "not one vpdpbusd ran");
    num_emulated = 0;
    for (const int64_t S : {1, 7, 33})
      EXPECT(same_bits(attention(vnni->kernels.attention_int16, S, S, 32),
                       attention(scalar().kernels.attention_int16, S, S, 32)),
             "%s attention S=%d", vnni->name, int(S));
    EXPECT(num_emulated > 0, "not one vpdpwssd ran");
    std::printf("%s: int8 as the scalar build's, vpdpbusd and vpdpwssd emulated\n", vnni->name);
  }
#endif
}

}  // namespace

int main() {
  test_linear_is_exact();
  test_layer_norm_is_exact();
  const Kernels& exact = scalar().kernels;
  test_attention_is_exact("attention", exact.attention, false);
  test_attention_is_exact("attention_int16", exact.attention_int16, true);
  for (const Reach& reach : kReaches)
    if (reach.keys.empty())
      test_attention_is_exact("attention_int16", exact.attention_int16, true, reach);
  for (const InstructionSet* isa : runnable_sets()) {
    test_a_sum_is_rounded_once(*isa);
    test_linear(*isa, WeightType::kFloat32);
    if (!isa->multiplies_pairs)
      test_linear(*isa, WeightType::kBfloat16);  // else: test_bfloat16.cpp
    test_linear(*isa, WeightType::kInt8);
    test_attention(*isa, &Kernels::attention);
    test_attention(*isa, &Kernels::attention_int16);
    test_attention_of_extremes(*isa);
    test_attention_to_one_key(*isa);
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
