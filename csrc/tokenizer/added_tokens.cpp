#include "tokenizer/added_tokens.h"

#include <algorithm>

namespace minifuse {

AddedTokens::AddedTokens(std::vector<std::pair<std::u32string, int32_t>> tokens)
    : tokens_(std::move(tokens)) {
  std::stable_sort(tokens_.begin(), tokens_.end(),
                   [](const auto& a, const auto& b) { return a.first.size() > b.first.size(); });
  for (const auto& [token, id] : tokens_) first_ += token.front();
}

bool AddedTokens::may_go_on(const std::vector<uint32_t>& characters) const {
  return std::any_of(tokens_.begin(), tokens_.end(), [&](const auto& one) {
    return one.first.size() > characters.size() &&
           std::equal(characters.begin(), characters.end(), one.first.begin());
  });
}

}  // namespace minifuse
