#include "tokenizer/unicode/composer.h"

#include <algorithm>

namespace minifuse {

bool Composer::joins(uint32_t c) const {
  if (!(characters_.properties(c) & kDecomposes)) return characters_.kinds(c) & kJoins;
  uint32_t parts[kMostCodePoints];
  Characters::decompose(c, parts);
  return characters_.kinds(parts[0]) & kJoins;
}

void Composer::compose() {
  parts_.clear();
  for (const uint32_t c : held_) {
    uint32_t parts[kMostCodePoints] = {c};
    const int size = characters_.properties(c) & kDecomposes ? Characters::decompose(c, parts) : 1;
    parts_.insert(parts_.end(), parts, parts + size);
  }
  const auto class_of = [&](uint32_t c) {
    return characters_.properties(c) & kOrdered ? Characters::order_class(c) : 0;
  };
  for (auto begin = parts_.begin(); begin != parts_.end();) {
    const auto end = std::find_if(begin, parts_.end(), [&](uint32_t c) { return !class_of(c); });
    std::stable_sort(begin, end, [&](uint32_t a, uint32_t b) { return class_of(a) < class_of(b); });
    begin = end == parts_.end() ? end : end + 1;
  }
  composed_.clear();
  // The last character of class 0, and the class of the one before the next: -1 where that is it.
  constexpr size_t kNone = ~size_t{0};
  size_t starter = kNone;
  int last = -1;
  for (const uint32_t c : parts_) {
    const int its_class = class_of(c);
    if (starter != kNone && last < its_class) {
      if (const uint32_t both = Characters::compose(composed_[starter], c)) {
        composed_[starter] = both;
        continue;
      }
    }
    last = its_class;
    if (its_class == 0) {
      starter = composed_.size();
      last = -1;
    }
    composed_.push_back(c);
  }
}

}  // namespace minifuse
