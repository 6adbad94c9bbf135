#include "tokenizer/piece_table.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace minifuse {

PieceTable::PieceTable(const std::vector<std::pair<std::string_view, int32_t>>& pieces) {
  // Half of the slots stay empty, so that a search ends soon.
  const uint64_t size = std::bit_ceil(2 * pieces.size() + 2);
  slots_.resize(size);
  shift_ = 64 - std::countr_zero(size);
  for (const auto& [piece, id] : pieces) {
    uint64_t hash = kEmpty;
    for (const char byte : piece) hash = extended(hash, static_cast<uint8_t>(byte));
    uint64_t place = hash >> shift_;
    while (slots_[place].id >= 0) place = (place + 1) & (size - 1);
    slots_[place] = {id, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(piece.size()),
                     static_cast<uint32_t>(hash)};
    bytes_.insert(bytes_.end(), piece.begin(), piece.end());
    longest_ = std::max(longest_, static_cast<int64_t>(piece.size()));
  }
}

int32_t PieceTable::find(uint64_t hash, const uint8_t* bytes, int64_t size) const {
  const uint64_t mask = slots_.size() - 1;
  for (uint64_t place = hash >> shift_;; place = (place + 1) & mask) {
    const Slot& slot = slots_[place];
    if (slot.id < 0) return -1;
    if (slot.tag == static_cast<uint32_t>(hash) && slot.size == size &&
        std::memcmp(&bytes_[slot.begin], bytes, static_cast<size_t>(size)) == 0)
      return slot.id;
  }
}

}  // namespace minifuse
