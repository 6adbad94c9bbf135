// Tokens that are looked for in a text before it is divided into words, [SEP] or <mask>: of those
// that begin at the leftmost place the longest one counts, and a text is divided there.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace minifuse {

class AddedTokens {
 public:
  // The id of tokens that only the `tokenizers` package treats: those that take white space beside
  // them along, or stand between words only.
  static constexpr int32_t kForeign = -1;

  struct Match {
    int64_t length;  // in code points; 0: none
    int32_t id;
  };

  // tokens: code points of each, one or more, and its id.
  explicit AddedTokens(std::vector<std::pair<std::u32string, int32_t>> tokens);

  bool has_foreign() const { return has_foreign_; }
  bool may_begin_with(uint32_t c) const {
    if (c < begins_.size()) return begins_[c];
    return std::binary_search(others_.begin(), others_.end(), c);
  }

  // The longest token that `characters` begin with.
  template <typename Character>
  Match longest(const Character* characters, int64_t length) const {
    Match best{0, kForeign};
    Range range{0, tokens_.size()};
    for (int64_t i = 0; i < length && narrow(range, i, characters[i]); ++i)
      if (is_whole(range, i + 1)) best = {i + 1, tokens_[range.begin].second};
    return best;
  }

  // Looks for tokens in characters that come one by one. `held` keeps those that may be the
  // beginning of a token, between calls; it is empty at first. Calls pass(c) for each character that
  // belongs to none and found(id) for each token, in the order of the text.
  template <typename Pass, typename Found>
  void put(uint32_t c, std::vector<uint32_t>& held, Pass pass, Found found) const {
    if (held.empty() && !may_begin_with(c)) return pass(c);
    held.push_back(c);
    release(held, false, pass, found);
  }
  // The same at the end of the text.
  template <typename Pass, typename Found>
  void finish(std::vector<uint32_t>& held, Pass pass, Found found) const {
    release(held, true, pass, found);
  }

 private:
  // Tokens that begin alike lie next to each other.
  struct Range {
    size_t begin, end;
  };

  // Keeps those tokens of a range that have c at place i; false where there are none.
  bool narrow(Range& range, int64_t i, uint32_t c) const;
  // True if the first of them is of this length, and so the beginning of the others.
  bool is_whole(const Range& range, int64_t length) const {
    return static_cast<int64_t>(tokens_[range.begin].first.size()) == length;
  }

  template <typename Pass, typename Found>
  void release(std::vector<uint32_t>& held, bool is_end, Pass pass, Found found) const {
    while (!held.empty() && (is_end || !may_go_on(held))) {
      const Match match = longest(held.data(), static_cast<int64_t>(held.size()));
      if (match.length > 0)
        found(match.id);
      else
        pass(held.front());
      held.erase(held.begin(), held.begin() + std::max<int64_t>(match.length, 1));
    }
  }

  // True if these are the beginning of a longer token.
  bool may_go_on(const std::vector<uint32_t>& characters) const;

  std::vector<std::pair<std::u32string, int32_t>> tokens_;  // in the order of their characters
  std::array<bool, 128> begins_{};                          // ASCII characters that begin one
  std::vector<uint32_t> others_;                            // all first characters, in order
  bool has_foreign_ = false;
};

}  // namespace minifuse
