#include "tokenizer/added_tokens.h"

namespace minifuse {

AddedTokens::AddedTokens(std::vector<std::pair<std::u32string, int32_t>> tokens)
    : tokens_(std::move(tokens)) {
  std::sort(tokens_.begin(), tokens_.end());
  for (const auto& [token, id] : tokens_) {
    const uint32_t first = token.front();
    if (first < begins_.size()) begins_[first] = true;
    others_.push_back(first);
    has_foreign_ |= id == kForeign;
  }
}

bool AddedTokens::narrow(Range& range, int64_t i, uint32_t c) const {
  const auto place = static_cast<size_t>(i);
  if (i > 0 && is_whole(range, i)) ++range.begin;  // it has no character there
  const auto begin = tokens_.begin() + static_cast<int64_t>(range.begin);
  const auto end = tokens_.begin() + static_cast<int64_t>(range.end);
  const auto first =
      std::partition_point(begin, end, [&](const auto& token) { return token.first[place] < c; });
  const auto last =
      std::partition_point(first, end, [&](const auto& token) { return token.first[place] == c; });
  range = {static_cast<size_t>(first - tokens_.begin()),
           static_cast<size_t>(last - tokens_.begin())};
  return range.begin < range.end;
}

bool AddedTokens::may_go_on(const std::vector<uint32_t>& characters) const {
  Range range{0, tokens_.size()};
  for (size_t i = 0; i < characters.size(); ++i)
    if (!narrow(range, static_cast<int64_t>(i), characters[i])) return false;
  return range.end - range.begin > 1 || !is_whole(range, static_cast<int64_t>(characters.size()));
}

}  // namespace minifuse
