#include "tokenizer/unicode/characters.h"

#include <algorithm>
#include <iterator>

namespace minifuse {
namespace {

#include "tokenizer/unicode/character_tables.inc"

// The parts of syllables of Hangul.
constexpr uint32_t kFirstLeading = 0x1100, kFirstVowel = 0x1161, kBeforeTrailing = 0x11A7;
constexpr uint32_t kNumLeading = 19, kNumVowels = 21;

// The place of c among sorted keys, one of which it is.
template <size_t N>
size_t place_of(uint32_t c, const uint32_t (&keys)[N]) {
  return static_cast<size_t>(std::lower_bound(keys, keys + N, c) - keys);
}

template <size_t N, size_t M, size_t L>
int look_up(uint32_t c, const uint32_t (&keys)[N], const uint32_t (&ends)[M],
            const uint32_t (&values)[L], uint32_t* result) {
  const size_t place = place_of(c, keys);
  std::copy(values + ends[place], values + ends[place + 1], result);
  return static_cast<int>(ends[place + 1] - ends[place]);
}

template <size_t N>
void fill_ranges(uint8_t* values, const uint32_t (&ranges)[N]) {
  for (size_t i = 0; i < N; i += 3)
    std::fill(values + ranges[i], values + ranges[i + 1] + 1, static_cast<uint8_t>(ranges[i + 2]));
}

}  // namespace

const Characters& Characters::get() {
  // Never freed: daemon threads may read it while the process ends.
  static const Characters& characters = *new Characters;
  return characters;
}

Characters::Characters()
    : properties_(new uint8_t[kNumCodePoints]()), kinds_(new uint8_t[kNumCodePoints]()) {
  fill_ranges(properties_.get(), kRanges);
  fill_ranges(kinds_.get(), kKindRanges);
}

int Characters::decompose(uint32_t c, uint32_t* result) {
  if (c < kFirstSyllable || c > kLastSyllable)
    return look_up(c, kDecompositionKeys, kDecompositionEnds, kDecomposition, result);
  const uint32_t place = c - kFirstSyllable, trailing = place % kSyllablesPerVowel;
  result[0] = kFirstLeading + place / (kNumVowels * kSyllablesPerVowel);
  result[1] = kFirstVowel + place / kSyllablesPerVowel % kNumVowels;
  result[2] = kBeforeTrailing + trailing;
  return trailing == 0 ? 2 : 3;
}

uint32_t Characters::compose(uint32_t first, uint32_t second) {
  if (first - kFirstLeading < kNumLeading && second - kFirstVowel < kNumVowels)
    return kFirstSyllable +
           ((first - kFirstLeading) * kNumVowels + second - kFirstVowel) * kSyllablesPerVowel;
  if (first >= kFirstSyllable && first <= kLastSyllable &&
      (first - kFirstSyllable) % kSyllablesPerVowel == 0 && second > kBeforeTrailing &&
      second < kBeforeTrailing + kSyllablesPerVowel)
    return first + second - kBeforeTrailing;
  size_t begin = 0, end = std::size(kCompositions) / 3;
  while (begin < end) {
    const size_t middle = (begin + end) / 2;
    const uint32_t* const pair = kCompositions + 3 * middle;
    if (pair[0] == first && pair[1] == second) return pair[2];
    if (pair[0] < first || (pair[0] == first && pair[1] < second))
      begin = middle + 1;
    else
      end = middle;
  }
  return 0;
}

int Characters::lower(uint32_t c, uint32_t* result) {
  return look_up(c, kLoweredKeys, kLoweredEnds, kLowered, result);
}

int Characters::order_class(uint32_t c) {
  return static_cast<int>(kOrder[place_of(c, kOrderKeys)]);
}

}  // namespace minifuse
