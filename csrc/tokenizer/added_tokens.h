// Tokens that are looked for in a text before it is divided into words, [SEP] or <mask>: of those
// that begin at the leftmost place the longest one counts, and a text is divided there.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "tokenizer/trie.h"

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
  explicit AddedTokens(const std::vector<std::pair<std::u32string, int32_t>>& tokens);

  bool has_foreign() const { return has_foreign_; }
  bool may_begin_with(uint32_t c) const {
    if (c < begins_.size()) return begins_[c];
    return has_others_ && tokens_.child(Trie::kRoot, c) != nullptr;
  }

  // The longest token that `characters` begin with.
  template <typename Character>
  Match longest(const Character* characters, int64_t length) const {
    Match best{0, kForeign};
    uint32_t number = Trie::kRoot;
    for (int64_t i = 0; i < length; ++i) {
      const Trie::Node* const node = tokens_.child(number, characters[i]);
      if (node == nullptr) break;
      number = node->number;
      if (node->id != Trie::kNone) best = {i + 1, node->id};
    }
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

  Trie tokens_;
  std::array<bool, 128> begins_{};  // ASCII characters that begin one
  bool has_others_ = false;  // another character begins one
  bool has_foreign_ = false;
};

}  // namespace minifuse
