#include "tokenizer/unigram/unigram_pieces.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"
#include "tokenizer/piece_table.h"
#include "tokenizer/text.h"

namespace minifuse {
namespace {

constexpr double kUnknownPenalty = 10;  // SentencePiece's

// Calls f(hash, size) for each prefix of a piece that ends behind a character, the piece among them.
template <typename F>
void for_each_prefix(std::string_view piece, F f) {
  uint64_t hash = PieceTable::kEmpty;
  for (size_t i = 0; i < piece.size();) {
    const size_t next = i + static_cast<size_t>(length_of_utf8(static_cast<uint8_t>(piece[i])));
    for (; i < std::min(next, piece.size()); ++i)
      hash = PieceTable::extended(hash, static_cast<uint8_t>(piece[i]));
    f(hash, i);
  }
}

// The number of different prefixes; those of equal hashes count once.
size_t count_prefixes(const std::vector<std::pair<std::string, double>>& vocabulary) {
  size_t most = 0, count = 0;
  for (const auto& [piece, score] : vocabulary) most += piece.size();
  constexpr uint64_t kNone = 0;
  std::vector<uint64_t> hashes(std::bit_ceil(2 * most + 2), kNone);
  const int shift = 64 - std::countr_zero(hashes.size());
  for (const auto& [piece, score] : vocabulary)
    for_each_prefix(piece, [&](uint64_t hash, size_t) {
      uint64_t place = hash >> shift;
      while (hashes[place] != kNone && hashes[place] != hash)
        place = (place + 1) & (hashes.size() - 1);
      count += hashes[place] == kNone;
      hashes[place] = hash;
    });
  return count;
}

}  // namespace

UnigramPieces::UnigramPieces(const std::vector<std::pair<std::string, double>>& vocabulary,
                             int32_t unknown_id)
    : unknown_id_(unknown_id) {
  double lowest = std::numeric_limits<double>::infinity();
  for (const auto& [piece, score] : vocabulary) {
    scores_.push_back(score);
    lowest = std::min(lowest, score);
    check(piece.size() <= std::numeric_limits<uint16_t>::max(), "a piece has ", piece.size(),
          " bytes, wanted at most 65535");
  }
  unknown_score_ = lowest - kUnknownPenalty;
  // A third of the slots stays empty at least, so that a search ends soon.
  const size_t num_prefixes = count_prefixes(vocabulary);
  slots_.resize(std::bit_ceil(num_prefixes + num_prefixes / 2 + 2));
  shift_ = 64 - std::countr_zero(slots_.size());
  for (size_t i = 0; i < vocabulary.size(); ++i) {
    const std::string& piece = vocabulary[i].first;
    const auto begin = static_cast<uint32_t>(bytes_.size());
    bytes_.insert(bytes_.end(), piece.begin(), piece.end());
    longest_ = std::max(longest_, static_cast<int64_t>(piece.size()));
    for_each_prefix(piece, [&](uint64_t hash, size_t size) {
      Slot& slot = slots_[place_of(hash, &bytes_[begin], static_cast<int64_t>(size))];
      if (slot.id == kEmpty)
        slot = {static_cast<uint32_t>(hash), begin, kPrefix, static_cast<uint16_t>(size)};
      if (size == piece.size()) slot.id = static_cast<int32_t>(i);
    });
  }
}

size_t UnigramPieces::place_of(uint64_t hash, const uint8_t* bytes, int64_t size) const {
  for (uint64_t place = hash >> shift_;; place = (place + 1) & (slots_.size() - 1)) {
    const Slot& slot = slots_[place];
    if (slot.id == kEmpty || (slot.tag == static_cast<uint32_t>(hash) && slot.size == size &&
                              std::memcmp(&bytes_[slot.begin], bytes, slot.size) == 0))
      return place;
  }
}

int64_t UnigramPieces::common_place(std::vector<Scratch::Node>& nodes, int64_t known) const {
  // Every way goes through one of the places in the last `longest_` bytes, and to each there is one
  // best way. They are followed back, the one that is furthest ahead first, until they have met.
  const auto node = [&](int64_t place) -> Scratch::Node& {
    return nodes[static_cast<size_t>(place)];
  };
  int64_t num_ways = 0;
  const auto mark = [&](int64_t place) {
    num_ways += !node(place).is_on_a_way;
    node(place).is_on_a_way = true;
  };
  for (int64_t place = std::max<int64_t>(known - longest_ + 1, 0); place <= known; ++place)
    if (place == 0 || node(place).begin >= 0) mark(place);
  int64_t cut = std::max<int64_t>(known, 0);
  for (; cut > 0; --cut) {
    if (!node(cut).is_on_a_way) continue;
    if (num_ways == 1) break;
    --num_ways;
    mark(node(cut).begin);
  }
  return cut;
}

int64_t UnigramPieces::append(const uint8_t* word, int64_t size, bool is_end, Scratch& scratch,
                              std::vector<int32_t>& ids) const {
  using Node = Scratch::Node;
  std::vector<Node>& nodes = scratch.nodes;
  nodes.assign(static_cast<size_t>(size + 1), Node{});
  nodes[0].score = scratch.score;
  for (int64_t begin = 0, length; begin < size; begin += length) {
    length = length_of_utf8(word[begin]);
    const double so_far = nodes[static_cast<size_t>(begin)].score;
    const auto offer = [&](int64_t end, double score, int32_t id) {
      Node& node = nodes[static_cast<size_t>(end)];
      if (node.begin < 0 || so_far + score > node.score) node = {so_far + score, begin, id, false};
    };
    bool has_single = false;
    uint64_t hash = PieceTable::kEmpty;
    for (int64_t end = begin; end < size;) {
      const int64_t next = end + length_of_utf8(word[end]);
      for (; end < next; ++end) hash = PieceTable::extended(hash, word[end]);
      const int32_t id = slots_[place_of(hash, word + begin, end - begin)].id;
      if (id == kEmpty) break;
      if (id == kPrefix) continue;
      offer(end, scores_[static_cast<size_t>(id)], id);
      has_single |= end - begin == length;
    }
    if (!has_single) offer(begin + length, unknown_score_, unknown_id_);
  }
  const int64_t cut = is_end ? size : common_place(nodes, size - longest_);
  scratch.reversed.clear();
  for (int64_t end = cut; end > 0; end = nodes[static_cast<size_t>(end)].begin)
    scratch.reversed.push_back(nodes[static_cast<size_t>(end)].id);
  // Unknown pieces in a row are one.
  for (auto id = scratch.reversed.rbegin(); id != scratch.reversed.rend(); ++id) {
    if (*id != unknown_id_ || !scratch.ends_unknown) ids.push_back(*id);
    scratch.ends_unknown = *id == unknown_id_;
  }
  scratch.score = is_end ? 0 : nodes[static_cast<size_t>(cut)].score;
  if (is_end) scratch.ends_unknown = false;
  return cut;
}

}  // namespace minifuse
