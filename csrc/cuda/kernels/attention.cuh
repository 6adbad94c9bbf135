// out = softmax(scale q k^T) v: a warp computes 16 queries of one head of one sentence, whose
// scores never leave its registers. Sentences of up to 64 tokens take one pass over their keys;
// longer ones go on tile by tile of 64 with the online softmax (Milakov and Gimelshein 2018):
//
//   m' = max(m, max_j s_j),  l' = l e^(m - m') + sum_j e^(s_j - m'),  o' = o e^(m - m') + p V
//
// Which pass a key falls into depends on its own sentence only, so the batch changes no bit; tiles of
// scores past the last key are left out, and would have added zeros. The four warps of a block take four heads; each has its own shared memory and waits for none.
//
//   shared, a warp: q [16, D]  k [64, D]  v [64, D], rows 16 bytes longer
#pragma once

#include "cuda/kernels.h"
#include "cuda/kernels/layernorm.cuh"
#include "cuda/kernels/tile.cuh"

namespace minifuse::cuda {

inline constexpr int kAttentionWarps = 4, kAttentionKeys = 64;

template <typename T, int kHeadDim>
struct AttentionShape {
  static constexpr int kThreads = 32 * kAttentionWarps;
  static constexpr int kRowBytes = kHeadDim * static_cast<int>(sizeof(T));
  static constexpr int kStride = kRowBytes + kRowPadding;
  static constexpr int kK = kAttentionQueries * kStride, kV = kK + kAttentionKeys * kStride;
  static constexpr int kWarpBytes = kV + kAttentionKeys * kStride;
  static constexpr int kSharedBytes = kAttentionWarps * kWarpBytes;
};

// o [16, D] += p v for 16 keys in 16 bits: the accumulators of two neighbouring tiles of scores are
// a fragment of the next product's first operand, once packed.
template <typename T, int kN>
MINIFUSE_DEVICE void multiply_values(T, float (&o)[kN][4], const float (&p0)[4],
                                     const float (&p1)[4], const std::byte* v, int stride) {
  const int lane = ptx::lane_index();
  const uint32_t a[4] = {pack(T{}, p0[0], p0[1]), pack(T{}, p0[2], p0[3]), pack(T{}, p1[0], p1[1]),
                         pack(T{}, p1[2], p1[3])};
  const std::byte* row = v + (lane % 16) * stride + 16 * (lane / 16);
#pragma unroll
  for (int n = 0; n < kN; n += 2) {
    uint32_t b[4];
    ptx::load_matrices_transposed(b, row + 16 * n);
    multiply(T{}, o[n], a, b[0], b[1]);
    multiply(T{}, o[n + 1], a, b[2], b[3]);
  }
}

// In float32 a lane has the scores of keys 2t and 2t + 1 where the fragment wants t and t + 4: the
// sum over keys may take them in any order, so key 2t stands for t and 2t + 1 for t + 4.
template <int kN>
MINIFUSE_DEVICE void multiply_values(float, float (&o)[kN][4], const float (&p0)[4],
                                     const float (&p1)[4], const std::byte* v, int stride) {
  const int lane = ptx::lane_index();
  const auto one = [&](const float (&p)[4], const std::byte* keys) {
    const uint32_t a[4] = {ptx::to_bits(p[0]), ptx::to_bits(p[2]), ptx::to_bits(p[1]),
                           ptx::to_bits(p[3])};
    const std::byte* row = keys + 2 * (lane % 4) * stride + 4 * (lane / 4);
#pragma unroll
    for (int n = 0; n < kN; ++n)
      multiply(0.0f, o[n], a, ptx::load(reinterpret_cast<const uint32_t*>(row + 32 * n)),
               ptx::load(reinterpret_cast<const uint32_t*>(row + stride + 32 * n)));
  };
  one(p0, v);
  one(p1, v + 8 * stride);
}

MINIFUSE_DEVICE AttentionTile attention_tile(const AttentionParams& p, int index) {
  if (p.tiles) return ptx::load(p.tiles + index);
  const int tiles_of_sentence = (p.seqlen_q + kAttentionQueries - 1) / kAttentionQueries;
  const int sentence = index / tiles_of_sentence;
  const int query = index % tiles_of_sentence * kAttentionQueries;
  const int rest = p.seqlen_q - query;
  return {sentence * p.seqlen_q + query, rest < kAttentionQueries ? rest : kAttentionQueries,
          sentence * p.seqlen_k, p.seqlen_k};
}

template <typename T, int kHeadDim>
MINIFUSE_KERNEL((AttentionShape<T, kHeadDim>::kThreads))
attention_kernel(const AttentionParams p) {
  using Shape = AttentionShape<T, kHeadDim>;
  constexpr int kScoreTiles = kAttentionKeys / 8, kOutTiles = kHeadDim / 8;
  constexpr int kSteps = Shape::kRowBytes / kStepBytes;
  constexpr float kMinusInfinity = -__builtin_huge_valf();
  const int num_head_groups = (p.num_heads + kAttentionWarps - 1) / kAttentionWarps;
  const int head = ptx::block_index() % num_head_groups * kAttentionWarps + ptx::warp_index();
  if (head >= p.num_heads) return;
  const AttentionTile tile = attention_tile(p, ptx::block_index() / num_head_groups);
  const int lane = ptx::lane_index();
  std::byte* q_tile = ptx::shared_memory() + ptx::warp_index() * Shape::kWarpBytes;
  std::byte* k_tile = q_tile + Shape::kK;
  std::byte* v_tile = q_tile + Shape::kV;
  // Rows first.. of q, k or v, this head's columns.
  const auto rows_of = [&](const void* data, int64_t stride, int first, int count) {
    return Rows<T>{static_cast<const T*>(data) + first * stride + head * kHeadDim, stride, count};
  };
  const float scale_log2 = p.scale * 1.4426950408889634f;  // e^x = 2^(x log2 e)

  copy_rows<32, kAttentionQueries>(q_tile, Shape::kStride,
                                   rows_of(p.q, p.ldq, tile.first_query, tile.num_queries), 0,
                                   Shape::kRowBytes, lane);
  uint32_t q_fragment[kSteps][4];
  float o[kOutTiles][4] = {}, maximum[2] = {kMinusInfinity, kMinusInfinity}, sum[2] = {};
  for (int key = 0; key < tile.num_keys; key += kAttentionKeys) {
    const int num_keys =
        tile.num_keys - key < kAttentionKeys ? tile.num_keys - key : kAttentionKeys;
    const int first = tile.first_key + key;
    const int num_tiles =
        (num_keys + 15) / 16 * 2;  // of scores; the matrix instructions take pairs
    for (int row = 0; row < 8 * num_tiles; row += 16) {
      copy_rows<32, 16>(k_tile + row * Shape::kStride, Shape::kStride,
                        rows_of(p.k, p.ldk, first + row, num_keys - row), 0, Shape::kRowBytes,
                        lane);
      copy_rows<32, 16>(v_tile + row * Shape::kStride, Shape::kStride,
                        rows_of(p.v, p.ldv, first + row, num_keys - row), 0, Shape::kRowBytes,
                        lane);
    }
    ptx::copy_commit();
    ptx::copy_wait<0>();
    ptx::warp_barrier();

    if (key == 0)
#pragma unroll
      for (int step = 0; step < kSteps; ++step)
        load_rows(q_fragment[step], q_tile + step * kStepBytes, Shape::kStride);
    float s[kScoreTiles][4] = {};
#pragma unroll
    for (int n = 0; n < kScoreTiles; n += 2) {
      if (n >= num_tiles) break;
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
        uint32_t k_fragment[4];
        load_columns(k_fragment, k_tile + 8 * n * Shape::kStride + step * kStepBytes,
                     Shape::kStride);
        multiply(T{}, s[n], q_fragment[step], k_fragment[0], k_fragment[1]);
        multiply(T{}, s[n + 1], q_fragment[step], k_fragment[2], k_fragment[3]);
      }
    }

    // Rows lane / 4 (i = 0, 1) and lane / 4 + 8 (i = 2, 3).
    float tile_maximum[2] = {kMinusInfinity, kMinusInfinity};
#pragma unroll
    for (int n = 0; n < kScoreTiles; ++n) {
      if (n >= num_tiles) break;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int column = 8 * n + 2 * (lane % 4) + i % 2;
        const bool is_key =
            column < num_keys && (!p.mask || ptx::load(p.mask + first + column) != 0);
        s[n][i] = is_key ? s[n][i] * scale_log2 : kMinusInfinity;
        if (s[n][i] > tile_maximum[i / 2]) tile_maximum[i / 2] = s[n][i];
      }
    }
    float correction[2], shift[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float seen = quad_max(tile_maximum[half]);
      const float next = maximum[half] > seen ? maximum[half] : seen;
      shift[half] = next == kMinusInfinity ? 0.0f : next;  // no key yet: e^(-inf) without a NaN
      correction[half] = ptx::exp2(maximum[half] - shift[half]);  // 0 at first
      maximum[half] = next;
      sum[half] *= correction[half];
    }
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n)
#pragma unroll
      for (int i = 0; i < 4; ++i) o[n][i] *= correction[i / 2];
#pragma unroll
    for (int n = 0; n < kScoreTiles; n += 2) {
      if (n >= num_tiles) break;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        float& score = s[n + i / 4][i % 4];
        score = ptx::exp2(score - shift[i % 4 / 2]);
        sum[i % 4 / 2] += score;
      }
      multiply_values(T{}, o, s[n], s[n + 1], v_tile + 8 * n * Shape::kStride, Shape::kStride);
    }
    ptx::warp_barrier();  // k and v have been used up
  }

  T* out = static_cast<T*>(p.out) + head * kHeadDim;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float total = quad_sum(sum[half]);
    const float reciprocal = total > 0.0f ? ptx::reciprocal(total) : 0.0f;  // no key: zeros
    const int row = lane / 4 + 8 * half;
    if (row >= tile.num_queries) continue;
#pragma unroll
    for (int n = 0; n < kOutTiles; ++n)
      ptx::store(reinterpret_cast<Pair<T>*>(out + (tile.first_query + row) * p.ldout + 8 * n +
                                            2 * (lane % 4)),
                 to_pair<T>(o[n][2 * half] * reciprocal, o[n][2 * half + 1] * reciprocal));
  }
}

}  // namespace minifuse::cuda
