#include "tokenizer/bert/word_pieces.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace minifuse {
namespace {

using Pieces = std::vector<std::pair<std::string_view, int32_t>>;

Pieces beginnings_of(const std::vector<std::pair<std::string, int32_t>>& vocabulary) {
  return {vocabulary.begin(), vocabulary.end()};
}

Pieces continuations_of(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
                        const std::string& prefix) {
  Pieces pieces;
  for (const auto& [piece, id] : vocabulary)
    if (piece.starts_with(prefix))
      pieces.emplace_back(std::string_view(piece).substr(prefix.size()), id);
  return pieces;
}

}  // namespace

PieceTable::PieceTable(const Pieces& pieces) {
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

WordPieces::WordPieces(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
                       const std::string& prefix, int32_t unknown_id, int64_t max_characters)
    : beginnings_(beginnings_of(vocabulary)),
      continuations_(continuations_of(vocabulary, prefix)),
      unknown_id_(unknown_id),
      max_characters_(max_characters) {}

void WordPieces::append_pieces(const uint8_t* word, int64_t size, uint64_t* prefix_hashes,
                               std::vector<int32_t>& ids) const {
  const size_t first = ids.size();
  const PieceTable* table = &beginnings_;
  for (int64_t begin = 0; begin < size; table = &continuations_) {
    int64_t length = std::min(size - begin, table->longest());
    uint64_t hash = PieceTable::kEmpty;
    for (int64_t i = 0; i < length; ++i)
      prefix_hashes[i] = hash = PieceTable::extended(hash, word[begin + i]);
    int32_t id = -1;
    // A prefix that ends within a character is no piece: those are whole characters.
    for (; length > 0; --length)
      if ((id = table->find(prefix_hashes[length - 1], word + begin, length)) >= 0) break;
    if (id < 0) {
      ids.resize(first);
      ids.push_back(unknown_id_);
      return;
    }
    ids.push_back(id);
    begin += length;
  }
}

}  // namespace minifuse
