// Properties of characters as the `tokenizers` package sees them, from tables that
// csrc/tokenizer/unicode/make_character_tables.py writes. One byte for each code point tells nearly all; what a
// character becomes is searched for only where its byte says that it changes.
#pragma once

#include <cstdint>
#include <memory>

namespace minifuse {

// A code point's bits. Unicode's categories stand in brackets.
enum CharacterProperty : uint8_t {
  kRemoved = 1,  // dropped when a text is cleaned [Cc, Cf, Co], U+FFFD; no white space
  kSpace = 2,  // white space
  kPunctuation = 4,  // [P*], and every sign of ASCII
  kChinese = 8,  // an ideograph, which is a word by itself
  kMark = 16,  // an accent [Mn], dropped where accents are stripped
  kDecomposes = 32,  // has a canonical decomposition
  kLowers = 64,  // has a small letter
  kOrdered = 128,  // sorted among its neighbours when a text is decomposed
};

// More bits, for the tokenizers that compose characters or divide texts by regular expressions.
enum CharacterKind : uint8_t {
  kLetter = 1,  // \p{L}
  kNumber = 2,  // \p{N}
  kBlank = 4,  // \s
  kJoins = 8,  // may be composed with the character before it, or changes places with it
};

// Syllables of Hangul, which are computed and stand in no table (The Unicode Standard, section
// 3.12).
constexpr uint32_t kFirstSyllable = 0xAC00, kLastSyllable = 0xD7A3, kSyllablesPerVowel = 28;

// At most this many code points stand for one that is decomposed or lowered.
constexpr int kMostCodePoints = 4;

class Characters {
 public:
  static constexpr uint32_t kNumCodePoints = 0x110000;

  // The one table of the process.
  static const Characters& get();

  uint8_t properties(uint32_t c) const { return properties_[c]; }
  uint8_t kinds(uint32_t c) const { return kinds_[c]; }

  // Write what stands for c to `result` and return how many code points these are. c has
  // kDecomposes (Unicode's form D), or kLowers.
  static int decompose(uint32_t c, uint32_t* result);
  static int lower(uint32_t c, uint32_t* result);

  // Neighbours are sorted by this number. c has kOrdered.
  static int order_class(uint32_t c);

  // The character that stands for two of them in Unicode's form C; 0: there is none.
  static uint32_t compose(uint32_t first, uint32_t second);

 private:
  Characters();

  const std::unique_ptr<uint8_t[]> properties_, kinds_;
};

}  // namespace minifuse
