// Unigram: of all ways to divide a word into pieces of the vocabulary, the one whose scores have
// the highest sum (Kudo 2018), found by Viterbi's algorithm from left to right.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/tokenizer.h"
#include "tokenizer/trie.h"

namespace minifuse {

class UnigramPieces {
 public:
  // vocabulary: pieces in UTF-8 with the logarithms of their probabilities, in the order of ids. Of
  // equal pieces the last one counts.
  UnigramPieces(const std::vector<std::pair<std::string, double>>& vocabulary, int32_t unknown_id);

  // Memory for a word that is fed bit by bit; places are counted in characters.
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

  // Appends the ids of the pieces of `word` and returns how many of its characters they cover: all
  // if is_end, or up to the last place where they are certain, whatever follows. The rest must be at
  // the front of the next call's word. Where should_stop says true they are void, and cover all.
  int64_t append(const std::vector<uint32_t>& word, bool is_end, const Tokenizer::Stop& should_stop,
                 Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  // The last place at or before `known` through which the best way goes, whatever follows. All
  // pieces that begin before `known` have been looked at.
  int64_t common_place(std::vector<Scratch::Node>& nodes, int64_t known) const;

  Trie pieces_;
  std::vector<double> scores_;
  const int32_t unknown_id_;
  double unknown_score_;
  int64_t longest_ = 0;
};

}  // namespace minifuse
