// Byte-pair encoding: of all neighbours in a word that the vocabulary merges, those of the merge
// that was learnt first become one, the leftmost first, until none is left (Sennrich et al. 2016;
// on bytes, Radford et al. 2019).
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/piece_table.h"
#include "tokenizer/probe_table.h"
#include "tokenizer/tokenizer.h"

namespace minifuse {

class BytePairs {
 public:
  struct Merge {
    int32_t first, second, both;  // ids
  };

  // byte_ids: of each byte alone. merges: first learnt first. words: that are taken whole before
  // any merge; mostly none.
  BytePairs(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges,
            const std::vector<std::pair<std::string_view, int32_t>>& words);

  // Memory for one word at a time.
  struct Scratch {
    struct Symbol {
      int32_t id;
      int32_t before, after;  // the neighbours' places; -1: none
    };
    struct Candidate {
      int32_t rank;
      int32_t place;  // of the left one
      int32_t first, second;
      // The heap has the greatest on top.
      bool operator<(const Candidate& other) const {
        return rank > other.rank || (rank == other.rank && place > other.place);
      }
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
    std::vector<int32_t> ids, ranks;
  };

  // Words of more bytes than this have no ids here.
  static constexpr int64_t kMostBytes = std::numeric_limits<int32_t>::max();

  // Appends the ids of a word of at most kMostBytes. They are void where should_stop said true.
  void append(const uint8_t* word, int64_t size, const Tokenizer::Stop& should_stop,
              Scratch& scratch, std::vector<int32_t>& ids) const;

 private:
  struct Slot {
    static constexpr uint64_t kEmpty = ~uint64_t{0};
    uint64_t pair = kEmpty;
    int32_t rank = -1, both = -1;
    bool is_empty() const { return pair == kEmpty; }
  };
  static constexpr int32_t kNoRank = 0x7FFFFFFF;

  // The merge of a pair; nullptr: there is none.
  const Slot* find(int32_t first, int32_t second) const;
  int32_t rank(int32_t first, int32_t second) const {
    const Slot* const slot = find(first, second);
    return slot == nullptr ? kNoRank : slot->rank;
  }
  void append_short(const uint8_t* word, int64_t size, Scratch& scratch,
                    std::vector<int32_t>& ids) const;
  void append_long(const uint8_t* word, int64_t size, const Tokenizer::Stop& should_stop,
                   Scratch& scratch, std::vector<int32_t>& ids) const;

  const std::array<int32_t, 256> byte_ids_;
  const PieceTable words_;
  const bool has_words_;
  ProbeTable<Slot> merges_;
};

}  // namespace minifuse
