// WordPiece: a word becomes the longest piece of the vocabulary that it begins with, then the
// longest continuation that the rest begins with, and so on (Schuster and Nakajima 2012; Devlin et
// al. 2019).
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/piece_table.h"

namespace minifuse {

class WordPieces {
 public:
  // vocabulary: pieces in UTF-8 and their ids. prefix: of a piece that continues a word. A word of
  // more than max_characters, or one that cannot be divided, becomes unknown_id.
  WordPieces(const std::vector<std::pair<std::string, int32_t>>& vocabulary,
             const std::string& prefix, int32_t unknown_id, int64_t max_characters);

  int64_t max_characters() const { return max_characters_; }
  int32_t unknown_id() const { return unknown_id_; }

  // Appends the ids of a word in UTF-8; its hash is known. prefix_hashes: room for one per byte.
  void append(const uint8_t* word, int64_t size, uint64_t hash, uint64_t* prefix_hashes,
              std::vector<int32_t>& ids) const {
    const int32_t id = beginnings_.find(hash, word, size);
    if (id >= 0)
      ids.push_back(id);
    else
      append_pieces(word, size, prefix_hashes, ids);
  }

 private:
  void append_pieces(const uint8_t* word, int64_t size, uint64_t* prefix_hashes,
                     std::vector<int32_t>& ids) const;

  const PieceTable beginnings_, continuations_;
  const int32_t unknown_id_;
  const int64_t max_characters_;
};

}  // namespace minifuse
