#include "tokenizer/added_tokens.h"

namespace minifuse {

AddedTokens::AddedTokens(const std::vector<std::pair<std::u32string, int32_t>>& tokens) {
  for (const auto& [token, id] : tokens) {
    tokens_.add(token, id);
    const uint32_t first = token.front();
    if (first < begins_.size())
      begins_[first] = true;
    else
      has_others_ = true;
    has_foreign_ |= id == kForeign;
  }
}

bool AddedTokens::may_go_on(const std::vector<uint32_t>& characters) const {
  uint32_t number = Trie::kRoot;
  for (const uint32_t c : characters) {
    const Trie::Node* const node = tokens_.child(number, c);
    if (node == nullptr) return false;
    number = node->number;
  }
  return tokens_.has_children(number);
}

}  // namespace minifuse
