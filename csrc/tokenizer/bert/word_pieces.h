// WordPiece: a word becomes the longest piece of the vocabulary that it begins with, then the
// longest continuation that the rest begins with, and so on (Schuster and Nakajima 2012; Devlin et
// al. 2019).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace minifuse {

// Strings with their ids, found by a hash that grows byte by byte: all prefixes of a word cost what
// the longest one does.
class PieceTable {
 public:
  static constexpr uint64_t kEmpty = 0xCBF29CE484222325;  // the hash of the empty string

  // Shuffles the bits of a byte into those of the string before it (as FNV-1a, with a multiplier
  // that fills 64 bits). A place in the table is taken from the top bits, which depend on all
  // bytes.
  static uint64_t extended(uint64_t hash, uint8_t byte) {
    return (hash ^ byte) * 0x9E3779B97F4A7C15;
  }

  explicit PieceTable(const std::vector<std::pair<std::string_view, int32_t>>& pieces);

  // The id of a string of this hash, or -1.
  int32_t find(uint64_t hash, const uint8_t* bytes, int64_t size) const;

  int64_t longest() const { return longest_; }

 private:
  struct Slot {
    int32_t id = -1;
    uint32_t begin = 0, size = 0;  // in bytes_
    uint32_t tag = 0;  // low bits of the hash: most other strings differ in them
  };

  std::vector<Slot> slots_;
  std::vector<uint8_t> bytes_;
  int shift_ = 0;
  int64_t longest_ = 0;
};

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
