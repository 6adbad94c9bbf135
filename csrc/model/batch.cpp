// The checks of a batch: errors name the place.

#include "model/batch.h"

#include "common/check.h"

namespace minifuse {

void check_lengths(const ModelDescription& description, const Batch& batch) {
  check(batch.batch >= 0, "cu_seqlens: wanted at least one element");
  check(batch.cu_seqlens[0] == 0, "cu_seqlens[0] is ", batch.cu_seqlens[0], ", wanted 0");
  for (int64_t i = 0; i < batch.batch; ++i) {
    const int64_t seqlen = int64_t{batch.cu_seqlens[i + 1]} - batch.cu_seqlens[i];
    check(seqlen >= 0, "cu_seqlens descends at ", i + 1, ": ", batch.cu_seqlens[i], " then ",
          batch.cu_seqlens[i + 1]);
    check(seqlen <= description.max_position_embeddings, "sentence ", i, " has ", seqlen,
          " tokens, wanted at most max_position_embeddings=", description.max_position_embeddings);
  }
}

void check_ids(const ModelDescription& description, const Batch& batch) {
  check(batch.cu_seqlens[batch.batch] == batch.total_tokens, "cu_seqlens ends at ",
        batch.cu_seqlens[batch.batch], ", wanted the number of ids, ", batch.total_tokens);
  for (int64_t i = 0; i < batch.total_tokens; ++i)
    check(batch.ids[i] >= 0 && batch.ids[i] < description.vocab_size, "ids[", i, "] is ",
          batch.ids[i], ", wanted 0..", description.vocab_size - 1);
  for (int64_t i = 0; batch.token_types && i < batch.total_tokens; ++i)
    check(batch.token_types[i] >= 0 && batch.token_types[i] < description.num_token_types(),
          "token_types[", i, "] is ", batch.token_types[i], ", wanted 0..",
          description.num_token_types() - 1);
}

}  // namespace minifuse
