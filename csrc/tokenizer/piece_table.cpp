#include "tokenizer/piece_table.h"

#include <algorithm>
#include <cstring>

namespace minifuse {

PieceTable::PieceTable(const std::vector<std::pair<std::string_view, int32_t>>& pieces)
    : slots_(pieces.size()) {
  for (const auto& [piece, id] : pieces) {
    uint64_t hash = kEmpty;
    for (const char byte : piece) hash = extended(hash, static_cast<uint8_t>(byte));
    slots_.claim(hash, [](const Slot&) { return false; }) = {
        id, static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(piece.size()),
        static_cast<uint32_t>(hash)};
    bytes_.insert(bytes_.end(), piece.begin(), piece.end());
    longest_ = std::max(longest_, static_cast<int64_t>(piece.size()));
  }
}

int32_t PieceTable::find(uint64_t hash, const uint8_t* bytes, int64_t size) const {
  const Slot* const found = slots_.find(hash, [&](const Slot& slot) {
    return slot.tag == static_cast<uint32_t>(hash) && slot.size == size &&
           std::memcmp(&bytes_[slot.begin], bytes, static_cast<size_t>(size)) == 0;
  });
  return found ? found->id : -1;
}

}  // namespace minifuse
