// Tokens that are looked for in a text before it is divided into words, [SEP] or <mask>: of those
// that begin at the leftmost place the longest one counts, and a text is divided there.
#pragma once

#include <algorithm>
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

  bool empty() const { return tokens_.empty(); }
  bool may_begin_with(uint32_t c) const { return first_.find(c) != std::u32string::npos; }

  // The longest token that `characters` begin with.
  template <typename Character>
  Match longest(const Character* characters, int64_t length) const {
    for (const auto& [token, id] : tokens_) {
      const auto size = static_cast<int64_t>(token.size());
      if (size > length) continue;
      int64_t same = 0;
      while (same < size && token[static_cast<size_t>(same)] == characters[same]) ++same;
      if (same == size) return {size, id};
    }
    return {0, -1};
  }

  // Looks for tokens in characters that come one by one. `held` keeps those that may be the
  // beginning of a token, between calls; it is empty at first. Calls pass(c) for each character
  // that belongs to none and found(id) for each token, in the order of the text.
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

  std::vector<std::pair<std::u32string, int32_t>> tokens_;  // longest first
  std::u32string first_;                                    // the first character of each
};

}  // namespace minifuse
