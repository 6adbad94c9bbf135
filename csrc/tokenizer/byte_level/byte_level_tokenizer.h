// Byte-level BPE (Radford et al. 2019), as the `tokenizers` package runs it for RoBERTa, ModernBERT
// and Qwen: compose characters where it is asked -> divide into words by a regular expression ->
// merge the bytes of each. It reads a text character by character and stops when it has all the
// tokens that were asked for.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/byte_level/byte_pairs.h"
#include "tokenizer/unicode/characters.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/byte_level/word_patterns.h"

namespace minifuse {

struct ByteLevelTokenizerOptions {
  bool composes;  // Unicode's form C
  bool adds_prefix_space;  // where a text begins with another character
  WordPattern pattern;
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // bytes and their ids
  std::vector<std::pair<std::string, std::string>> merges;  // bytes
  bool takes_words_whole;  // that are in the vocabulary
  std::vector<std::pair<std::u32string, int32_t>> added_tokens, added_normalized;
};

class ByteLevelTokenizer final : public Tokenizer {
 public:
  // Throws std::invalid_argument where a byte or a merge is not in the vocabulary.
  explicit ByteLevelTokenizer(const ByteLevelTokenizerOptions& options);

  std::unique_ptr<Scratch> make_scratch() const override;
  Outcome append(const Text& text, int64_t most, Scratch& scratch,
                 std::vector<int32_t>& ids) const override;

 private:
  class Reader;
  struct Memory;

  const bool composes_, adds_prefix_space_;
  const WordPattern pattern_;
  const std::unique_ptr<const BytePairs> pairs_;
  const AddedTokens added_, added_normalized_;
  const Characters& characters_;
};

}  // namespace minifuse
