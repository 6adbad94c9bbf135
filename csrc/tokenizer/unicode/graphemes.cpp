#include "tokenizer/unicode/graphemes.h"

#include <algorithm>
#include <iterator>

namespace minifuse {
namespace {

#include "tokenizer/unicode/grapheme_tables.inc"

bool is_control(GraphemeClass c) {
  return c == GraphemeClass::kControl || c == GraphemeClass::kCarriageReturn ||
         c == GraphemeClass::kLineFeed;
}

bool is_mark(GraphemeClass c) {
  return c == GraphemeClass::kExtend || c == GraphemeClass::kExtendOnly ||
         c == GraphemeClass::kLinker;
}

// Rules GB6 to GB8.
bool joins_hangul(GraphemeClass a, GraphemeClass b) {
  using enum GraphemeClass;
  if (a == kLeading)
    return b == kLeading || b == kVowel || b == kSyllable || b == kSyllableWithTrailing;
  if (a == kSyllable || a == kVowel) return b == kVowel || b == kTrailing;
  return (a == kSyllableWithTrailing || a == kTrailing) && b == kTrailing;
}

}  // namespace

const Graphemes& Graphemes::get() {
  // Never freed: daemon threads may read it while the process ends.
  static const Graphemes& graphemes = *new Graphemes;
  return graphemes;
}

Graphemes::Graphemes() : classes_(new uint8_t[Characters::kNumCodePoints]()) {
  for (size_t i = 0; i < std::size(kRanges); i += 3)
    std::fill(&classes_[kRanges[i]], &classes_[kRanges[i + 1]] + 1,
              static_cast<uint8_t>(kRanges[i + 2]));
  for (uint32_t c = kFirstSyllable; c <= kLastSyllable; ++c)
    classes_[c] = static_cast<uint8_t>((c - kFirstSyllable) % kSyllablesPerVowel == 0
                                           ? GraphemeClass::kSyllable
                                           : GraphemeClass::kSyllableWithTrailing);
}

bool GraphemeBoundaries::begins_before(GraphemeClass next) {
  using enum GraphemeClass;
  bool joins;
  if (last_ == kCarriageReturn && next == kLineFeed)
    joins = true;
  else if (is_control(last_) || is_control(next))
    joins = false;
  else
    joins = is_mark(next) || next == kJoiner || next == kSpacingMark || last_ == kPrepend ||
            joins_hangul(last_, next) || (has_linker_ && next == kConsonant) ||
            (has_joined_pictograph_ && next == kPictograph);
  // GB11: a pictograph, marks, a joiner. GB9c: a consonant, then marks and joiners with a linker.
  has_joined_pictograph_ = has_pictograph_ && next == kJoiner;
  has_pictograph_ = next == kPictograph || (has_pictograph_ && is_mark(next));
  const bool goes_on = has_consonant_ && (next == kExtend || next == kLinker || next == kJoiner);
  has_linker_ = goes_on && (has_linker_ || next == kLinker);
  has_consonant_ = next == kConsonant || goes_on;
  last_ = next;
  return !joins;
}

}  // namespace minifuse
