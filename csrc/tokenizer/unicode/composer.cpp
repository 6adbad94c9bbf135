#include "tokenizer/unicode/composer.h"

#include <algorithm>
#include <array>

namespace minifuse {

bool Composer::joins(uint32_t c) const {
  if (!(characters_.properties(c) & kDecomposes)) return characters_.kinds(c) & kJoins;
  uint32_t parts[kMostCodePoints];
  Characters::decompose(c, parts);
  return characters_.kinds(parts[0]) & kJoins;
}

void Composer::order(const Tokenizer::Stop& should_stop) {
  // Below so many, sorting takes less time than counting the classes.
  constexpr int64_t kFew = 64;
  size_t since_look = 0;
  for (auto begin = parts_.begin(); begin != parts_.end();) {
    const auto end = std::find_if(begin, parts_.end(), [&](uint32_t c) { return !class_of(c); });
    since_look += static_cast<size_t>(end - begin) + 1;
    if (since_look >= kMarksPerLook) {
      if (should_stop()) return;
      since_look = 0;
    }
    if (end - begin < kFew) {
      std::stable_sort(begin, end,
                       [&](uint32_t a, uint32_t b) { return class_of(a) < class_of(b); });
    } else {
      std::array<size_t, 257> place{};  // of the next mark of a class
      for (auto mark = begin; mark != end; ++mark)
        ++place[static_cast<size_t>(class_of(*mark)) + 1];
      for (size_t i = 1; i < place.size(); ++i) place[i] += place[i - 1];
      ordered_.resize(static_cast<size_t>(end - begin));
      size_t count = 0;
      for (auto mark = begin; mark != end; ++mark) {
        if (++count % kMarksPerLook == 0 && should_stop()) return;
        ordered_[place[static_cast<size_t>(class_of(*mark))]++] = *mark;
      }
      std::copy(ordered_.begin(), ordered_.end(), begin);
    }
    begin = end == parts_.end() ? end : end + 1;
  }
}

void Composer::compose(const Tokenizer::Stop& should_stop) {
  composed_.clear();
  parts_.clear();
  for (size_t i = 0; i < held_.size(); ++i) {
    if (i % kMarksPerLook == kMarksPerLook - 1 && should_stop()) return;
    const uint32_t c = held_[i];
    uint32_t parts[kMostCodePoints] = {c};
    const int size = characters_.properties(c) & kDecomposes ? Characters::decompose(c, parts) : 1;
    parts_.insert(parts_.end(), parts, parts + size);
  }
  order(should_stop);
  // The last character of class 0, and the class of the one before the next: -1 where that is it.
  constexpr size_t kNone = ~size_t{0};
  size_t starter = kNone;
  int last = -1;
  for (size_t i = 0; i < parts_.size(); ++i) {
    if (i % kMarksPerLook == kMarksPerLook - 1 && should_stop()) return;
    const uint32_t c = parts_[i];
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
