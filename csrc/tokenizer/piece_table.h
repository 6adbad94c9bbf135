// Strings with their ids, found by a hash that grows byte by byte: all prefixes of a word cost what
// the longest one does.
#pragma once

#include <cstdint>
#include <string_view>
#include <utility>
#include <vector>

#include "tokenizer/probe_table.h"

namespace minifuse {

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
    bool is_empty() const { return id < 0; }
  };

  ProbeTable<Slot> slots_;
  std::vector<uint8_t> bytes_;
  int64_t longest_ = 0;
};

}  // namespace minifuse
