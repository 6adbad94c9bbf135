#include "tokenizer/unigram/unigram_pieces.h"

#include <algorithm>

#include "tokenizer/text.h"

namespace minifuse {
namespace {

constexpr double kUnknownPenalty = 10;  // SentencePiece's

// Branches that are looked at between two looks whether the ids are still wanted: some milliseconds.
constexpr int64_t kBranchesPerLook = 1 << 18;

}  // namespace

UnigramPieces::UnigramPieces(const std::vector<std::pair<std::string, double>>& vocabulary,
                             int32_t unknown_id)
    : unknown_id_(unknown_id) {
  double lowest = std::numeric_limits<double>::infinity();
  std::u32string characters;
  for (const auto& [piece, score] : vocabulary) {
    characters.clear();
    for_each_character(piece, [&](uint32_t c) { characters += static_cast<char32_t>(c); });
    pieces_.add(characters, static_cast<int32_t>(scores_.size()));
    longest_ = std::max(longest_, static_cast<int64_t>(characters.size()));
    scores_.push_back(score);
    lowest = std::min(lowest, score);
  }
  unknown_score_ = lowest - kUnknownPenalty;
}

int64_t UnigramPieces::common_place(std::vector<Scratch::Node>& nodes, int64_t known) const {
  // Every way goes through one of the last `longest_` places, and to each there is one
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

int64_t UnigramPieces::append(const std::vector<uint32_t>& word, bool is_end,
                              const Tokenizer::Stop& should_stop, Scratch& scratch,
                              std::vector<int32_t>& ids) const {
  using Node = Scratch::Node;
  std::vector<Node>& nodes = scratch.nodes;
  const auto size = static_cast<int64_t>(word.size());
  nodes.assign(word.size() + 1, Node{});
  nodes[0].score = scratch.score;
  int64_t until_look = kBranchesPerLook;
  for (int64_t begin = 0; begin < size; ++begin) {
    const double so_far = nodes[static_cast<size_t>(begin)].score;
    const auto offer = [&](int64_t end, double score, int32_t id) {
      Node& node = nodes[static_cast<size_t>(end)];
      if (node.begin < 0 || so_far + score > node.score) node = {so_far + score, begin, id, false};
    };
    bool has_single = false;
    int64_t end = begin;
    for (uint32_t number = Trie::kRoot; end < size;) {
      const Trie::Node* const node = pieces_.child(number, word[static_cast<size_t>(end)]);
      if (node == nullptr) break;
      ++end;
      number = node->number;
      if (node->id == Trie::kNone) continue;
      offer(end, scores_[static_cast<size_t>(node->id)], node->id);
      has_single |= end - begin == 1;
    }
    if (!has_single) offer(begin + 1, unknown_score_, unknown_id_);
    until_look -= end - begin + 1;
    if (until_look < 0) {
      if (should_stop()) return size;
      until_look = kBranchesPerLook;
    }
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
