// BERT's tokenizer (Devlin et al. 2019, tokenization.py), as the `tokenizers` package runs it:
// normalise -> divide at white space, punctuation and ideographs -> WordPiece. It reads a text
// character by character and stops when it has all the tokens that were asked for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/unicode/characters.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/bert/word_pieces.h"

namespace minifuse {

struct BertTokenizerOptions {
  bool cleans_text, separates_chinese, strips_accents, lowers;
  std::vector<std::pair<std::string, int32_t>> vocabulary;  // UTF-8
  std::string continuation_prefix;
  int32_t unknown_id;
  int64_t max_word_characters;
  // Looked for in the text itself, and in the normalised text.
  std::vector<std::pair<std::u32string, int32_t>> added_tokens, added_normalized;
};

class BertTokenizer final : public Tokenizer {
 public:
  explicit BertTokenizer(const BertTokenizerOptions& options);

  std::unique_ptr<Scratch> make_scratch() const override;
  Outcome append(const Text& text, int64_t most, Scratch& scratch,
                 std::vector<int32_t>& ids) const override;

 private:
  class Reader;
  struct Memory;

  // The treatment of an ASCII character where nothing is held back.
  enum class Step : uint8_t { kAppend, kEndWord, kAlone, kDrop, kGeneral };
  struct AsciiStep {
    Step step;
    uint8_t character;  // lowered where letters are
  };

  const bool cleans_text_, separates_chinese_, strips_accents_, lowers_;
  const WordPieces pieces_;
  const AddedTokens added_, added_normalized_;
  const Characters& characters_;
  std::array<AsciiStep, 128> ascii_;
};

}  // namespace minifuse
