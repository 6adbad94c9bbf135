// The characters of a text that belong together (extended grapheme clusters, Unicode Standard Annex
// 29), as the library behind the `tokenizers` package has them.
#pragma once

#include <cstdint>
#include <memory>

#include "tokenizer/unicode/characters.h"

namespace minifuse {

// The numbers of grapheme_tables.inc.
enum class GraphemeClass : uint8_t {
  kOther,
  kCarriageReturn,
  kLineFeed,
  kControl,
  kExtend,
  kExtendOnly,  // goes on any cluster, but ends a chain of consonants
  kLinker,  // a mark that joins two consonants
  kJoiner,  // U+200D
  kSpacingMark,
  kPrepend,
  kPictograph,
  kConsonant,
  kLeading,  // of a syllable of Hangul, as those below
  kVowel,
  kTrailing,
  kSyllable,
  kSyllableWithTrailing,
};

class Graphemes {
 public:
  static const Graphemes& get();

  GraphemeClass class_of(uint32_t c) const { return static_cast<GraphemeClass>(classes_[c]); }

 private:
  Graphemes();

  const std::unique_ptr<uint8_t[]> classes_;
};

// The classes of the characters of one text, one after the other. Flags of countries, which go in
// pairs, are left out: a cluster of six bytes or more is treated as if each of its characters were
// one, and two halves of a flag have eight.
class GraphemeBoundaries {
 public:
  // True if a character of this class begins a cluster behind those before it.
  bool begins_before(GraphemeClass next);
  // True if a letter behind those before it begins a cluster.
  bool begins_before_letter() const { return last_ != GraphemeClass::kPrepend; }

 private:
  GraphemeClass last_ = GraphemeClass::kControl;  // a text begins as behind one
  bool has_pictograph_ = false, has_joined_pictograph_ = false;
  bool has_consonant_ = false, has_linker_ = false;
};

}  // namespace minifuse
