// Texts to packed token ids on several threads: special tokens around each, cut at a length.
#pragma once

#include <cstdint>
#include <vector>

#include "threads/should_stop.h"
#include "tokenizer/tokenizer.h"

namespace minifuse {

// Special tokens before and behind those of a text, and the most that there may be in all. A longer
// text loses its own tokens from the end; where special ones alone are too many, these do.
struct TokenLimits {
  std::vector<int32_t> prefix, suffix;
  int64_t max_length;
};

struct TokenizedTexts {
  std::vector<int32_t> ids;        // of all texts, one after the other
  std::vector<int64_t> lengths;    // of each
  std::vector<uint8_t> truncated;  // 1: it was cut
  std::vector<int64_t> foreign;    // texts for the `tokenizers` package; they have no ids here
  int64_t invalid = -1;            // the first text that is not valid Unicode; the rest is void
  bool was_stopped = false;        // should_stop said true, and the rest is void
};

// should_stop is asked on the calling thread, now and then: while it reads texts, and while it waits
// for others that do.
TokenizedTexts tokenize(const Tokenizer& tokenizer, const std::vector<Text>& texts,
                        const TokenLimits& limits, int num_threads, const ShouldStop& should_stop);

}  // namespace minifuse
