// Unicode's form C of characters that come one by one: what can be composed is (Unicode Standard
// Annex 15).
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/unicode/characters.h"

namespace minifuse {

class Composer {
 public:
  explicit Composer(const Characters& characters) : characters_(characters) {}

  void clear() { held_.clear(); }
  bool holds_nothing() const { return held_.empty(); }

  // Calls pass(c) for each composed character that is certain now.
  template <typename Pass>
  void put(uint32_t c, Pass pass) {
    if (!joins(c)) finish(pass);
    held_.push_back(c);
  }
  template <typename Pass>
  void finish(Pass pass) {
    if (held_.size() == 1 && !(characters_.properties(held_[0]) & kDecomposes)) {
      pass(held_[0]);
    } else if (!held_.empty()) {
      compose();
      for (const uint32_t c : composed_) pass(c);
    }
    held_.clear();
  }

 private:
  // True if c may change with what stands before it.
  bool joins(uint32_t c) const;
  // held_ -> composed_.
  void compose();

  const Characters& characters_;
  std::vector<uint32_t> held_;  // a character and those behind it that join
  std::vector<uint32_t> parts_, composed_;
};

}  // namespace minifuse
