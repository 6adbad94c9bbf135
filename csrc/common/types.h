// Plain aggregates that every layer of the native core shares: the parameters of each fused
// operation, in the letters of the equations (M rows, N output columns, K inputs, H hidden_size).
// All float pointers are float32; every stride counts elements, never bytes. Functions are static:
// an inline one compiled into an instruction set's file could be the copy that the linker keeps.
#pragma once

#include <cstddef>
#include <cstdint>

namespace minifuse {

enum class Activation : int32_t { kNone, kGelu, kGeluNew, kRelu, kSilu, kTanh, kSigmoid };

enum class Pooling : int32_t { kMean, kCls, kMax, kMeanSqrtLen, kWeightedMean, kLastToken };

// The time that each stage takes, in ticks of the processor's counter: counted where somebody asks.
struct StageTicks {
  uint64_t embedding, matrices, quantization, activation, attention, layer_norm, pooling;
};
static inline uint64_t ticks_now() {
#if defined(__x86_64__)
  return __builtin_ia32_rdtsc();
#else
  return 0;
#endif
}

// Types in which the numbers of a weight are stored and multiplied.
enum class WeightType : int32_t {
  kFloat32,
  kBfloat16,  // widened to float32 on the way into the registers, exactly
  kInt8,  // a scale per output channel, against rows of x in 8 bits (int8.inl.h)
};

// y = activation(x W^T + bias), over the weight panels [panel_begin, panel_end).
struct LinearParams {
  const float* x;  // [M, K], rows ldx apart
  int64_t ldx;
  const void* packed_weight;  // [ceil(N / NR), panel]: the kernel's own order; zeros past N
  const float* bias;  // [N], or null
  float* y;  // [M, N], rows ldy apart; never overlaps x
  int64_t ldy;
  int64_t M, N, K;
  int64_t panel_begin, panel_end;
  Activation activation;
  // int8 only. w[n][k] = weight_scale[g][n] code[n][k] input_scale[k] for k in group g; N of the
  // first two is padded to whole panels.
  const float* weight_scale = nullptr;  // [int8_groups(K), N]
  const float* weight_sum =
      nullptr;  // [int8_groups(K), N], weight_scale sum over the group of code
  const float* input_scale = nullptr;  // [K], or null: ones
  void* scratch = nullptr;  // LinearKernels::scratch_bytes(M, K), 64-byte aligned
  int64_t scratch_bytes = 0;  // how many bytes lie at scratch; checked builds compare it with need
  StageTicks* ticks = nullptr;  // or null; of its stages, those inside a linear kernel
};
// The same for the rows [begin, end) alone.
static inline LinearParams rows_of(LinearParams p, int64_t begin, int64_t end) {
  p.x += begin * p.ldx;
  p.y += begin * p.ldy;
  p.M = end - begin;
  return p;
}

// y = LayerNorm(x + residual) * gamma + beta, row by row, or RMSNorm(x + residual) * gamma (Zhang and
// Sennrich 2019); y may be x or residual, sum may be residual.
struct LayerNormParams {
  const float* x;  // [M, H], rows ldx apart
  int64_t ldx;
  const float* residual;  // [M, H], rows ldr apart, or null
  int64_t ldr;
  float* sum = nullptr;  // [M, H], rows ldr apart, or null: where x + residual is kept
  const float* gamma;  // [H]
  const float* beta;  // [H]; not read by RMSNorm
  float eps;
  float* y;  // [M, H], rows ldy apart
  int64_t ldy;
  int64_t M, H;
  bool is_rms = false;
};
static inline LayerNormParams rows_of(LayerNormParams p, int64_t begin, int64_t end) {
  p.x += begin * p.ldx;
  p.y += begin * p.ldy;
  if (p.residual) p.residual += begin * p.ldr;
  if (p.sum) p.sum += begin * p.ldr;
  p.M = end - begin;
  return p;
}

// The heads of a sentence's tokens: [seqlen, num_heads, head_dim] with strides from token to token
// and from head to head.
template <typename Float>
struct Heads {
  Float* data;
  int64_t row_stride, head_stride;
};

inline constexpr int64_t kAllKeys = INT32_MAX, kAllQueries = INT32_MAX;
// To prepare a head's keys and values takes a few hundredths of the time of so many queries that reach
// all of them.
inline constexpr int64_t kFewestQueries = 512;

// out = softmax(scale * q k^T) v for one sentence, over the heads [head_begin, head_end).
struct AttentionParams {
  Heads<const float> q;  // seqlen_q tokens
  Heads<const float> k, v;  // seqlen_k
  Heads<float> out;  // seqlen_q
  int64_t seqlen_q, seqlen_k, head_dim;
  // [seqlen_k]: the rows of k and v to attend to; null: 0..seqlen_k-1
  const int32_t* key_index = nullptr;
  int64_t head_begin, head_end;  // of q; head h reads head h / queries_per_key of k and v
  int64_t queries_per_key = 1;
  float scale;
  float* scratch;  // attention_scratch_floats(seqlen_k, head_dim), 64-byte aligned
  // Null, or the bias of head 0 and distance 0: bias[j - i] is added to the scaled score of query i
  // and key j. Heads are relative_bias_stride() apart. Not together with key_index.
  const float* bias = nullptr;
  int64_t bias_stride = 0;
  // A query attends to keys at most so many places before and after it. Others cost no time but for
  // those of a tile's own rows. Not together with key_index.
  int64_t keys_before = kAllKeys, keys_after = kAllKeys;
  // The queries [query_begin, query_end) alone, or all behind the first. attention_int16 reads the others,
  // too, and all heads of q that read the same keys: their scale is one.
  int64_t query_begin = 0, query_end = kAllQueries;
};

// x = R(position) x in place for each head of each row, which turns the pair (x[d], x[d + D / 2]) by
// the angle position * frequency[d] (Su et al. 2021).
struct RotaryParams {
  float* x;  // [M, num_heads * head_dim], rows ldx apart
  int64_t ldx;
  const float* angles;  // [M, head_dim]: head_dim / 2 cosines, then their sines
  int64_t M, num_heads, head_dim;
};

// Attention of one sentence with dropout of its weights, and its gradient
// (attention_training.inl.h). seqlen_q = seqlen_k, no key_index, no bias,
// all keys, as many heads of k and v as of q.
struct AttentionTrainingParams {
  AttentionParams forward;  // scratch: attention_training_floats(seqlen, head_dim)
  float dropout;  // the share of weights that is dropped, 0 <= dropout < 1
  uint64_t seed, first_number;  // of the draw (dropout.inl.h)
  // These serve the gradient only; dq, dk and dv lie as q, k and v do, dout as out.
  const float* dout = nullptr;
  float *dq = nullptr, *dk = nullptr, *dv = nullptr;
  // Asked as is_stopped(call) between rows of a sentence: true where the rest is not wanted.
  bool (*is_stopped)(void* call) = nullptr;
  void* call = nullptr;
};

// x[i] = LayerNorm(word[ids[i]] + position[positions[i]]), token type 0 folded into position.
struct EmbedParams {
  const int32_t* ids;  // [M]
  const int32_t* positions;  // [M]
  const float* word;  // [vocab_size, H]
  const float* position;  // [num_token_types * position_rows, H]
  const float* gamma;  // [H]; null: no LayerNorm
  const float* beta;  // [H]
  float eps;
  float* y;  // [M, H], rows ldy apart
  int64_t ldy;
  int64_t M, H;
};

// y = one vector from the rows of a sentence; no row at all gives zeros.
struct PoolParams {
  const float* x;  // [num_rows, H], rows ldx apart
  int64_t ldx;
  const uint8_t* mask;  // [num_rows], 0 leaves a row out; null keeps every row
  float* y;  // [H]
  int64_t first_row;  // rows before it (a prompt) stay out; they still count in a row's place
  int64_t num_rows, H;
  Pooling pooling;
};

// The dot products of queries with vectors of an index (search.inl.h); what exceeds its query's
// threshold is offered, vectors ascending.
struct SearchParams {
  const void* vectors;  // [num_vectors, stride]: float32, bfloat16 bits or 8-bit codes
  int64_t stride;
  int64_t num_vectors, dim;
  const float* queries;  // [num_queries, dim]; not read for codes
  int64_t num_queries;
  // The queries packed as a weight [num_queries, dim] of the vectors' type (bfloat16: float32).
  const void* query_panels;
  const float* thresholds;  // [num_queries, padded to whole panels with infinity]
  void (*offer)(void* context, int64_t query, int64_t vector, float score);  // may raise thresholds
  void* context;
  float* scratch;  // search_scratch_floats(dim), 64-byte aligned
  // Codes only: vector v is vector_scale[v][0] code + vector_scale[v][1], query q is query_scale[q]
  // query_codes[q]; query_sum = query_scale times the sum of its codes. Both padded like thresholds.
  const float* vector_scale = nullptr;  // [num_vectors, 2]
  const int8_t* query_codes = nullptr;  // [num_queries, dim rounded up to 64], zeros past dim
  const float* query_scale = nullptr;
  const float* query_sum = nullptr;
};

// Floats between rows of a workspace: whole cache lines, and an odd number of them, so that the
// rows of a tile fall into different sets of the L1 cache (1,536 floats are 96 lines: with 64 sets
// every row would land in one of two).
static constexpr int64_t padded_stride(int64_t width) {
  const int64_t lines = (width + 15) / 16;
  return (lines | 1) * 16;
}

inline constexpr int64_t kMaxHeadDim = 256;

// Inputs that share a scale in int8 (int8.inl.h): a multiple of 16, and few enough for their
// products to fit an int32 by far.
inline constexpr int64_t kInt8Group = 192;
// At least one, which stores the bias even where there is no input.
static constexpr int64_t int8_groups(int64_t K) {
  return K <= kInt8Group ? 1 : (K + kInt8Group - 1) / kInt8Group;
}

static constexpr int64_t round_up(int64_t value, int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

// Items in a block where `total` of them go in blocks of equal size, rounded up to `multiple`, at
// most `most` each (a multiple too): a small remainder would fetch a matrix for itself. At 97 rows
// of a limit of 48 a layer takes 7 % less time than with 48 + 48 + 1, at 145 5 % (Zen 3).
static constexpr int64_t block_of(int64_t total, int64_t most, int64_t multiple) {
  const int64_t num_blocks = (total + most - 1) / most;
  return num_blocks <= 1 ? total : round_up((total + num_blocks - 1) / num_blocks, multiple);
}

// The widest tile of any instruction set: scratch sizes need not know which one runs.
inline constexpr int64_t kMaxTileRows = 16;
inline constexpr int64_t kMaxPanelColumns = 32;

// Rows of x that a linear kernel takes through all panels together, at most. The number itself
// depends on M, K and N and is not monotone in any of them (block_of balances), so buffers are sized
// by this bound and never by the number.
inline constexpr int64_t kMaxBlockRows = 512;

// Rows that scratch memory must have room for when a linear kernel is given M rows. Monotone in M:
// a buffer for the largest chunk of a batch serves every smaller one.
static constexpr int64_t scratch_rows(int64_t M) {
  return round_up(M < kMaxBlockRows ? M : kMaxBlockRows, kMaxTileRows);
}

// K^T panels, a tile of scores and a packed V of one head.
static constexpr int64_t attention_scratch_floats(int64_t seqlen_k, int64_t head_dim) {
  const int64_t keys = padded_stride(round_up(seqlen_k, kMaxPanelColumns));
  return head_dim * keys + kMaxTileRows * keys + round_up(head_dim, kMaxPanelColumns) * seqlen_k;
}

// Floats of a head's biases by distance, -(P - 1) to P - 1 for P positions, and what kernels read
// beyond the last key of a panel.
static constexpr int64_t relative_bias_stride(int64_t num_positions) {
  return round_up(2 * num_positions - 1 + kMaxPanelColumns, 16);
}

// Four matrices of one head and three sets of panels.
static constexpr int64_t attention_training_floats(int64_t seqlen, int64_t head_dim) {
  const int64_t ld = padded_stride(round_up(seqlen, kMaxPanelColumns));
  return 4 * round_up(seqlen, 16) * ld +
         3 * round_up(head_dim, kMaxPanelColumns) * round_up(seqlen, kMaxPanelColumns);
}

// A panel of vectors, or a block of them in float32.
inline constexpr int64_t kSearchBlockFloats = 32 * 1024;
static constexpr int64_t search_scratch_floats(int64_t dim) {
  const int64_t panel = dim * kMaxPanelColumns, rows = kMaxTileRows * dim;
  const int64_t block = rows > kSearchBlockFloats ? rows : kSearchBlockFloats;
  return (panel > block ? panel : block) + 64;
}

}  // namespace minifuse
