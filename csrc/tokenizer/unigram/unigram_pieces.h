// Unigram: of all ways to divide a word into pieces of the vocabulary, the one whose scores have
// the highest sum (Kudo 2018), found by Viterbi's algorithm from left to right.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

namespace minifuse {

class UnigramPieces {
 public:
  // vocabulary: pieces in UTF-8 with the logarithms of their probabilities, in the order of ids. Of
  // equal pieces the last one counts.
  UnigramPieces(const std::vector<std::pair<std::string, double>>& vocabulary, int32_t unknown_id);

  // Memory for a word that is fed bit by bit.
  struct Scratch {
    struct Node {
      double score = 0;  // of the best way to here
      int64_t begin = -1;  // of its last piece; -1: no way
      int32_t id = -1;  // of that piece
      bool is_on_a_way = false;
    };
    std::vector<Node> nodes;
    std::vector<int32_t> reversed;
    double score = 0;  // of what has been taken off the front of the word
    bool ends_unknown = false;  // what has been taken off ends with an unknown piece
  };

  // Appends the ids of the pieces of `word`, UTF-8 of any length, and returns how many of its bytes
  // they cover: all if is_end, or up to the last place where they are certain, whatever follows.
  // The rest must be at the front of the next call's word.
  int64_t append(const uint8_t* word, int64_t size, bool is_end, Scratch& scratch,
                 std::vector<int32_t>& ids) const;

 private:
  // Prefixes of pieces, by a hash that grows character by character.
  struct Slot {
    uint32_t tag = 0;
    uint32_t begin = 0;  // in bytes_
    int32_t id = kEmpty;
    uint16_t size = 0;
  };
  static constexpr int32_t kEmpty = -1, kPrefix = -2;  // kPrefix: of a piece, and none itself

  // The slot of a prefix, or the empty one where it belongs.
  size_t place_of(uint64_t hash, const uint8_t* bytes, int64_t size) const;
  // The last place at or before `known` through which the best way goes, whatever follows. All
  // pieces that begin before `known` have been looked at.
  int64_t common_place(std::vector<Scratch::Node>& nodes, int64_t known) const;

  std::vector<Slot> slots_;
  std::vector<uint8_t> bytes_;
  std::vector<double> scores_;
  const int32_t unknown_id_;
  double unknown_score_;
  int64_t longest_ = 0;
  int shift_ = 0;
};

}  // namespace minifuse
