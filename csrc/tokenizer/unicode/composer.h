// Unicode's form C of characters that come one by one: what can be composed is (Unicode Standard
// Annex 15).
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode/characters.h"

namespace minifuse {

class Composer {
 public:
  explicit Composer(const Characters& characters) : characters_(characters) {}

  void clear() { held_.clear(); }
  bool holds_nothing() const { return held_.empty(); }

  // Calls pass(c) for each composed character that is certain now. Where should_stop says true, what is
  // passed is void.
  template <typename Pass>
  void put(uint32_t c, const Tokenizer::Stop& should_stop, Pass pass) {
    if (!joins(c)) finish(should_stop, pass);
    held_.push_back(c);
  }
  template <typename Pass>
  void finish(const Tokenizer::Stop& should_stop, Pass pass) {
    if (held_.size() == 1 && !(characters_.properties(held_[0]) & kDecomposes)) {
      pass(held_[0]);
    } else if (!held_.empty()) {
      compose(should_stop);
      for (size_t i = 0; i < composed_.size(); ++i) {
        if (i % kMarksPerLook == kMarksPerLook - 1 && should_stop()) break;
        pass(composed_[i]);
      }
    }
    held_.clear();
  }

 private:
  // True if c may change with what stands before it.
  bool joins(uint32_t c) const;
  // held_ -> composed_.
  void compose(const Tokenizer::Stop& should_stop);
  // Sorts parts_ by their classes within each row of marks; those of one class keep their order.
  void order(const Tokenizer::Stop& should_stop);
  int class_of(uint32_t c) const {
    return characters_.properties(c) & kOrdered ? Characters::order_class(c) : 0;
  }

  // A character may be followed by millions of marks: some milliseconds.
  static constexpr size_t kMarksPerLook = 1 << 16;

  const Characters& characters_;
  std::vector<uint32_t> held_;  // a character and those behind it that join
  std::vector<uint32_t> parts_, ordered_, composed_;
};

}  // namespace minifuse
