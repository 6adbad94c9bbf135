#include "tokenizer/bert/word_pieces.h"

#include <algorithm>

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
