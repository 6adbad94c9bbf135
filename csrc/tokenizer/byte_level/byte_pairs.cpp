#include "tokenizer/byte_level/byte_pairs.h"

#include <algorithm>

namespace minifuse {
namespace {

// Up to so many bytes all pairs are looked through for each merge; beyond, a heap is faster.
constexpr int64_t kShort = 48;
// Steps of a long word between two looks whether its ids are still wanted: some milliseconds.
constexpr int64_t kStepsPerLook = 1 << 16;

uint64_t key_of(int32_t first, int32_t second) {
  return static_cast<uint64_t>(static_cast<uint32_t>(first)) << 32 | static_cast<uint32_t>(second);
}

}  // namespace

BytePairs::BytePairs(const std::array<int32_t, 256>& byte_ids, const std::vector<Merge>& merges,
                     const std::vector<std::pair<std::string_view, int32_t>>& words)
    : byte_ids_(byte_ids), words_(words), has_words_(!words.empty()), merges_(merges.size()) {
  int32_t rank = 0;
  for (const Merge& merge : merges) {
    const uint64_t pair = key_of(merge.first, merge.second);
    // The last one of equal pairs counts.
    merges_.claim(hash_of(pair), [pair](const Slot& slot) { return slot.pair == pair; }) = {
        pair, rank++, merge.both};
  }
}

const BytePairs::Slot* BytePairs::find(int32_t first, int32_t second) const {
  const uint64_t pair = key_of(first, second);
  return merges_.find(hash_of(pair), [pair](const Slot& slot) { return slot.pair == pair; });
}

void BytePairs::append(const uint8_t* word, int64_t size, const Tokenizer::Stop& should_stop,
                       Scratch& scratch, std::vector<int32_t>& ids) const {
  if (has_words_) {
    uint64_t hash = PieceTable::kEmpty;
    for (int64_t i = 0; i < size; ++i) hash = PieceTable::extended(hash, word[i]);
    const int32_t id = words_.find(hash, word, size);
    if (id >= 0) return ids.push_back(id);
  }
  if (size <= kShort)
    append_short(word, size, scratch, ids);
  else
    append_long(word, size, should_stop, scratch, ids);
}

void BytePairs::append_short(const uint8_t* word, int64_t size, Scratch& scratch,
                             std::vector<int32_t>& ids) const {
  std::vector<int32_t>&symbols = scratch.ids, &ranks = scratch.ranks;
  symbols.clear();
  for (int64_t i = 0; i < size; ++i) symbols.push_back(byte_ids_[word[i]]);
  ranks.resize(symbols.size());
  const auto update = [&](size_t i) {
    ranks[i] = i + 1 < symbols.size() ? rank(symbols[i], symbols[i + 1]) : kNoRank;
  };
  for (size_t i = 0; i < symbols.size(); ++i) update(i);
  for (;;) {
    const auto best = std::min_element(ranks.begin(), ranks.end());
    if (best == ranks.end() || *best == kNoRank) break;
    const auto i = static_cast<size_t>(best - ranks.begin());
    symbols[i] = find(symbols[i], symbols[i + 1])->both;
    symbols.erase(symbols.begin() + static_cast<int64_t>(i) + 1);
    ranks.erase(ranks.begin() + static_cast<int64_t>(i) + 1);
    update(i);
    if (i > 0) update(i - 1);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

void BytePairs::append_long(const uint8_t* word, int64_t size, const Tokenizer::Stop& should_stop,
                            Scratch& scratch, std::vector<int32_t>& ids) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<Scratch::Candidate>& heap = scratch.heap;
  symbols.clear();
  heap.clear();
  const auto last = static_cast<int32_t>(size - 1);
  for (int32_t i = 0; i < last; ++i) symbols.push_back({byte_ids_[word[i]], i - 1, i + 1});
  symbols.push_back({byte_ids_[word[last]], last - 1, -1});
  int64_t num_steps = 0;
  const auto must_stop = [&] { return ++num_steps % kStepsPerLook == 0 && should_stop(); };
  const auto symbol = [&](int32_t i) -> Scratch::Symbol& {
    return symbols[static_cast<size_t>(i)];
  };
  const auto offer = [&](int32_t i) {
    if (i < 0 || symbol(i).after < 0) return;
    const int32_t first = symbol(i).id, second = symbol(symbol(i).after).id;
    const int32_t its_rank = rank(first, second);
    if (its_rank == kNoRank) return;
    heap.push_back({its_rank, i, first, second});
    std::push_heap(heap.begin(), heap.end());
  };
  for (int32_t i = 0; i < last; ++i) {
    if (must_stop()) return;
    offer(i);
  }
  while (!heap.empty()) {
    if (must_stop()) return;
    const Scratch::Candidate best = heap.front();
    std::pop_heap(heap.begin(), heap.end());
    heap.pop_back();
    Scratch::Symbol& left = symbol(best.place);
    // One of both has been merged meanwhile; a symbol that is gone has no id.
    if (left.id != best.first || left.after < 0 || symbol(left.after).id != best.second) continue;
    Scratch::Symbol& right = symbol(left.after);
    left.id = find(best.first, best.second)->both;
    right.id = -1;
    left.after = right.after;
    if (left.after >= 0) symbol(left.after).before = best.place;
    offer(left.before);
    offer(best.place);
  }
  for (int32_t i = 0; i >= 0; i = symbol(i).after) ids.push_back(symbol(i).id);
}

}  // namespace minifuse
