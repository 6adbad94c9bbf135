// A table of slots that are found by a hash. Each lies at the place that its hash names or a little
// behind it, and how far is bounded: no vocabulary, however it was chosen, makes a search long. One
// that would is refused.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "common/check.h"

namespace minifuse {

// A hash whose top bits depend on all bits of the key.
constexpr uint64_t hash_of(uint64_t key) {
  key *= 0x9E3779B97F4A7C15;
  return (key ^ key >> 32) * 0xD6E8FEB86659FD93;
}

// A Slot is empty as Slot{} makes it and says so by is_empty().
template <typename Slot>
class ProbeTable {
 public:
  // Room for `count` slots. As many stay empty, so that a search ends soon.
  explicit ProbeTable(size_t count)
      : slots_(std::bit_ceil(2 * count + 2)), shift_(64 - std::countr_zero(slots_.size())) {}

  // The slots that there is room for.
  size_t room() const { return slots_.size() / 2 - 1; }

  // The slot that matches(slot) holds for; nullptr: there is none.
  template <typename F>
  const Slot* find(uint64_t hash, F matches) const {
    size_t place = hash >> shift_;
    for (size_t probes = 0; probes < most_probes_; ++probes, place = behind(place)) {
      const Slot& slot = slots_[place];
      if (slot.is_empty()) return nullptr;
      if (matches(slot)) return &slot;
    }
    return nullptr;
  }

  // The same, or the empty slot where it belongs.
  template <typename F>
  Slot& claim(uint64_t hash, F matches) {
    size_t place = hash >> shift_, probes = 1;
    for (; !slots_[place].is_empty() && !matches(slots_[place]); place = behind(place))
      check(++probes <= kMostProbes, "a vocabulary whose hashes collide");
    most_probes_ = std::max(most_probes_, probes);
    return slots_[place];
  }

  // Makes room for twice as many; hash_of_slot(slot) is what it was claimed by.
  template <typename F>
  void grow(F hash_of_slot) {
    ProbeTable larger(slots_.size() - 1);
    for (const Slot& slot : slots_)
      if (!slot.is_empty())
        larger.claim(hash_of_slot(slot), [](const Slot&) { return false; }) = slot;
    *this = std::move(larger);
  }

 private:
  // Half a million slots by chance need about a hundred.
  static constexpr size_t kMostProbes = 1000;

  size_t behind(size_t place) const { return (place + 1) & (slots_.size() - 1); }

  std::vector<Slot> slots_;
  int shift_;
  size_t most_probes_ = 0;  // of all slots
};

}  // namespace minifuse
