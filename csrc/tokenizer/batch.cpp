#include "tokenizer/batch.h"

#include <algorithm>

#include "threads/items.h"

namespace minifuse {
namespace {

// Texts that a thread takes at a time. Few, since one text may be as long as many others.
constexpr int64_t kTextsPerPart = 16;
// Below so many characters, which take 30 us, a second thread costs more than it saves.
constexpr int64_t kCharactersPerThread = 1 << 14;

// Appends one text's ids with its special tokens.
Tokenizer::Outcome append_text(const Tokenizer& tokenizer, const Text& text,
                               const TokenLimits& limits, Tokenizer::Scratch& scratch,
                               std::vector<int32_t>& ids, int64_t& length, uint8_t& truncated) {
  const size_t begin = ids.size();
  const auto num_special = static_cast<int64_t>(limits.prefix.size() + limits.suffix.size());
  // If special tokens alone are too many, the ids are cut without regard to what they are.
  const bool has_room = limits.max_length >= num_special;
  const int64_t most = has_room ? limits.max_length - num_special : limits.max_length;
  ids.insert(ids.end(), limits.prefix.begin(), limits.prefix.end());
  const size_t first = ids.size();
  const Tokenizer::Outcome outcome = tokenizer.append(text, most, scratch, ids);
  if (outcome != Tokenizer::Outcome::kDone) {
    ids.resize(begin);
    return outcome;
  }
  const auto count = static_cast<int64_t>(ids.size() - first);
  truncated = count + num_special > limits.max_length;
  if (truncated && has_room) ids.resize(first + static_cast<size_t>(most));
  ids.insert(ids.end(), limits.suffix.begin(), limits.suffix.end());
  length = std::min(static_cast<int64_t>(ids.size() - begin), limits.max_length);
  ids.resize(begin + static_cast<size_t>(length));
  return outcome;
}

}  // namespace

TokenizedTexts tokenize(const Tokenizer& tokenizer, const std::vector<Text>& texts,
                        const TokenLimits& limits, int num_threads, const ShouldStop& should_stop) {
  const int64_t size = static_cast<int64_t>(texts.size());
  const int64_t num_parts = (size + kTextsPerPart - 1) / kTextsPerPart;
  TokenizedTexts result;
  result.lengths.resize(texts.size());
  result.truncated.resize(texts.size());
  std::vector<std::vector<int32_t>> parts(static_cast<size_t>(num_parts));
  std::vector<Tokenizer::Outcome> outcomes(texts.size());
  Items items(num_parts, should_stop);
  const auto work = [&](int member) {
    const std::unique_ptr<Tokenizer::Scratch> scratch = tokenizer.make_scratch();
    scratch->should_stop = [&items, member] { return items.is_stopped(member); };
    while (const std::optional<int64_t> part = items.next(member)) {
      std::vector<int32_t>& ids = parts[static_cast<size_t>(*part)];
      const int64_t end = std::min((*part + 1) * kTextsPerPart, size);
      for (int64_t i = *part * kTextsPerPart; i < end; ++i) {
        if (scratch->should_stop()) return;
        const auto place = static_cast<size_t>(i);
        outcomes[place] = append_text(tokenizer, texts[place], limits, *scratch, ids,
                                      result.lengths[place], result.truncated[place]);
      }
    }
  };
  int64_t num_characters = 0;
  for (const Text& text : texts) num_characters += text.length;
  const int64_t useful = std::min(num_parts, 1 + num_characters / kCharactersPerThread);
  const int threads = static_cast<int>(std::min<int64_t>(num_threads, useful));
  if (threads <= 1) {
    work(0);
    result.was_stopped = items.is_stopped(0);
  } else {
    result.was_stopped = !items.run(threads, work);
  }
  if (result.was_stopped) return result;
  for (int64_t i = 0; i < size; ++i) {
    const Tokenizer::Outcome outcome = outcomes[static_cast<size_t>(i)];
    if (outcome == Tokenizer::Outcome::kForeign) result.foreign.push_back(i);
    if (outcome == Tokenizer::Outcome::kInvalid && result.invalid < 0) result.invalid = i;
  }
  if (result.invalid >= 0) return result;
  if (num_parts == 1) {
    result.ids = std::move(parts[0]);
    return result;
  }
  size_t total = 0;
  for (const auto& ids : parts) total += ids.size();
  result.ids.reserve(total);
  for (const auto& ids : parts) result.ids.insert(result.ids.end(), ids.begin(), ids.end());
  return result;
}

}  // namespace minifuse
