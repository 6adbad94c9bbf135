// The regular expressions by which byte-level tokenizers divide a text into words, as functions.
#pragma once

#include <cstdint>

#include "tokenizer/unicode/characters.h"

namespace minifuse {

enum class WordPattern : uint8_t {
  // GPT-2: 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
  kGpt2,
  // Qwen2: (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|
  //        \s*[\r\n]+|\s+(?!\S)|\s+
  kQwen2,
  // The same with \p{N}{1,3}: Llama 3.
  kLlama3,
};

// The length of the word that begins a text of n > 0 characters. 0: it may go on behind them, which
// is_end denies.
int64_t word_length(WordPattern pattern, const Characters& characters, const uint32_t* text,
                    int64_t n, bool is_end);

}  // namespace minifuse
