// The memory that the activations of one chunk need, and how much of it. Every size that the encoder
// allocates is computed by workspace_sizes(), which is monotone in the number of tokens, the longest
// sentence and the number of members: what is allocated for the largest chunk of a call serves every
// smaller one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include "common/buffer.h"
#include "common/kernels.h"
#include "model/description.h"
#include "model/plan.h"

namespace minifuse {

// Sizes of a workspace. Strides are padded (types.h) and count floats.
struct WorkspaceSizes {
  int64_t tokens;
  int64_t hidden_rows;  // rows of the feed-forward's intermediate that exist at a time
  int64_t ldx, ldqkv, ldcontext, ldhidden;
  int64_t attention_floats;  // scratch memory of one member
  int64_t linear_bytes;  // scratch memory of one member
  int64_t members;

  // Returns whether memory of these sizes serves the other sizes. Strides are the model's.
  bool covers(const WorkspaceSizes& need) const {
    return tokens >= need.tokens && hidden_rows >= need.hidden_rows &&
           members * attention_floats >= need.members * need.attention_floats &&
           members * linear_bytes >= need.members * need.linear_bytes;
  }
  // Returns the sizes of memory that serves both. Strides are the model's.
  WorkspaceSizes joined_with(const WorkspaceSizes& other) const {
    WorkspaceSizes joined = *this;
    for (int64_t WorkspaceSizes::* size :
         {&WorkspaceSizes::tokens, &WorkspaceSizes::hidden_rows, &WorkspaceSizes::attention_floats,
          &WorkspaceSizes::linear_bytes, &WorkspaceSizes::members})
      joined.*size = std::max(joined.*size, other.*size);
    return joined;
  }
};

// Rows that go through W1, GELU and W2 together when one thread takes M rows through a layer.
inline int64_t ffn_block_rows(int64_t M, const BlockSizes& blocks, const LinearKernels& kernels) {
  return block_of(M, round_up(blocks.ffn_rows, kernels.tile_rows), kernels.tile_rows);
}

// Returns the sizes for a chunk of at most `tokens` tokens whose longest sentence has max_seqlen of
// them, when `members` threads share it.
inline WorkspaceSizes workspace_sizes(const ModelDescription& description,
                                      const LinearKernels& kernels, const BlockSizes& blocks,
                                      int64_t tokens, int64_t max_seqlen, int64_t members) {
  const int64_t H = description.hidden_size, F = description.intermediate_size;
  const int64_t Q = description.query_columns();
  // One member alone takes the rows in blocks of balanced size, never more than this.
  const int64_t most_rows = round_up(blocks.ffn_rows, kernels.tile_rows);
  const int64_t hidden_rows = members == 1 ? std::min(tokens, most_rows) : tokens;
  return {.tokens = tokens,
          .hidden_rows = hidden_rows,
          .ldx = padded_stride(H),
          .ldqkv = padded_stride(description.qkv_columns()),
          .ldcontext = padded_stride(Q),
          .ldhidden = padded_stride(description.ffn_columns()),
          .attention_floats =
              round_up(attention_scratch_floats(max_seqlen, description.head_dim()), 16),
          // Wq, Wk, Wv and W1 read rows of H values, Wo of Q, W2 of F.
          .linear_bytes =
              round_up(std::max({kernels.scratch_bytes(tokens, H), kernels.scratch_bytes(tokens, Q),
                                 kernels.scratch_bytes(hidden_rows, F)}),
                       64),
          .members = members};
}

struct Workspace {
  WorkspaceSizes allocated;
  WorkspaceSizes sizes;  // of the call that uses it; covered by what is allocated
  Buffer x, y;  // [tokens, H]
  Buffer context;  // [tokens, query_columns]
  Buffer qkv;  // [tokens, qkv_columns]
  Buffer hidden;  // [hidden_rows, F], or 2F with a gate
  Buffer attention_scratch;  // [members, attention_floats]
  BufferOf<std::byte> linear_scratch;  // [members, linear_bytes]
  std::vector<int32_t> positions;  // [tokens]
  bool is_timed = false;
  StageTicks ticks{};

  explicit Workspace(const WorkspaceSizes& s)
      : allocated(s),
        sizes(s),
        x(s.tokens * s.ldx),
        y(s.tokens * s.ldx),
        context(s.tokens * s.ldcontext),
        qkv(s.tokens * s.ldqkv),
        hidden(s.hidden_rows * s.ldhidden),
        attention_scratch(s.members * s.attention_floats),
        linear_scratch(s.members * s.linear_bytes),
        positions(static_cast<size_t>(s.tokens)) {}

  // Bytes that are held.
  int64_t size_bytes() const {
    return 4 * (x.size() + y.size() + context.size() + qkv.size() + hidden.size() +
                attention_scratch.size()) +
           linear_scratch.size();
  }
  float* attention_scratch_of(int member) {
    return attention_scratch.data() + member * sizes.attention_floats;
  }
  std::byte* linear_scratch_of(int member) {
    return linear_scratch.data() + member * sizes.linear_bytes;
  }
  // Returns the bytes that the buffer has from there on, for the checks of kernels.
  int64_t linear_scratch_bytes_of(int member) const {
    return std::min(sizes.linear_bytes, linear_scratch.size() - member * sizes.linear_bytes);
  }
  // The stages' clock, which only the first member of a team runs; null where nobody asked.
  StageTicks* ticks_of(int member) { return is_timed && member == 0 ? &ticks : nullptr; }
};

}  // namespace minifuse
