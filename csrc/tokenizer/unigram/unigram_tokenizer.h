// SentencePiece's Unigram tokenizer (Kudo and Richardson 2018), as the `tokenizers` package runs it
// for XLM-RoBERTa and its relatives: normalise by a map -> divide at white space, which becomes
// U+2581 -> Unigram. It reads a text character by character and stops when it has all the tokens
// that were asked for.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/unicode/characters.h"
#include "tokenizer/unicode/graphemes.h"
#include "tokenizer/unigram/precompiled_map.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unigram/unigram_pieces.h"

namespace minifuse {

struct UnigramTokenizerOptions {
  std::optional<std::string> map;  // of PrecompiledMap
  bool strips_end;  // drop white space at the end
  std::optional<char32_t> spaces_become;  // what stands for two spaces or more in a row
  bool splits_at_white_space;  // all of it divides words and vanishes, spaces as well
  bool prepends;  // words begin with U+2581 whatever stood before them
  std::vector<std::pair<std::string, double>> vocabulary;  // pieces in UTF-8, their scores
  int32_t unknown_id;
  std::vector<std::pair<std::u32string, int32_t>> added_tokens, added_normalized;
};

class UnigramTokenizer final : public Tokenizer {
 public:
  explicit UnigramTokenizer(const UnigramTokenizerOptions& options);

  std::unique_ptr<Scratch> make_scratch() const override;
  Outcome append(const Text& text, int64_t most, Scratch& scratch,
                 std::vector<int32_t>& ids) const override;

 private:
  class Reader;
  struct Memory;

  const std::optional<PrecompiledMap> map_;
  const bool strips_end_;
  const std::optional<char32_t> spaces_become_;
  const bool splits_at_white_space_, prepends_;
  const UnigramPieces pieces_;
  const AddedTokens added_, added_normalized_;
  const Characters& characters_;
  const Graphemes& graphemes_;
  // ASCII characters that go into a word as they are.
  std::array<bool, 128> is_plain_;
};

}  // namespace minifuse
