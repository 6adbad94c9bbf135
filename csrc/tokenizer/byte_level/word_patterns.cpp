#include "tokenizer/byte_level/word_patterns.h"

#include <algorithm>

namespace minifuse {
namespace {

// Reads characters of one text. A place at or behind n has no kind.
class Words {
 public:
  Words(const Characters& characters, const uint32_t* text, int64_t n, bool is_end)
      : characters_(characters), text_(text), n_(n), is_end_(is_end) {}

  bool is_letter(int64_t i) const { return kinds(i) & kLetter; }
  bool is_number(int64_t i) const { return kinds(i) & kNumber; }
  bool is_blank(int64_t i) const { return kinds(i) & kBlank; }
  bool is_other(int64_t i) const { return i < n_ && !(kinds(i) & (kLetter | kNumber | kBlank)); }
  bool is(int64_t i, uint32_t c) const { return i < n_ && text_[i] == c; }
  bool is_line_end(int64_t i) const { return is(i, '\r') || is(i, '\n'); }
  uint32_t at(int64_t i) const { return i < n_ ? text_[i] : 0; }

  // The first place from i on for which `belongs` is false.
  template <typename F>
  int64_t end_of(int64_t i, F belongs) const {
    while (i < n_ && belongs(i)) ++i;
    return i;
  }

  // A word's length, where it is certain.
  int64_t certain(int64_t length) const { return length < n_ || is_end_ ? length : 0; }
  bool needs(int64_t count) const { return n_ < count && !is_end_; }
  int64_t size() const { return n_; }

 private:
  uint8_t kinds(int64_t i) const { return i < n_ ? characters_.kinds(text_[i]) : 0; }

  const Characters& characters_;
  const uint32_t* const text_;
  const int64_t n_;
  const bool is_end_;
};

// 's|'t|'re|'ve|'m|'ll|'d: its length at the beginning, or 0.
int64_t contraction(const Words& words, bool ignores_case) {
  if (!words.is(0, '\'')) return 0;
  const auto small = [&](int64_t i) -> uint32_t {
    const uint32_t c = words.at(i);
    if (!ignores_case) return c;
    if (c == 0x17F) return 's';  // "ſ", whose capital is S
    return c >= 'A' && c <= 'Z' ? c + ('a' - 'A') : c;
  };
  const uint32_t first = small(1), second = small(2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return 2;
  const bool is_long = (first == 'r' && second == 'e') || (first == 'v' && second == 'e') ||
                       (first == 'l' && second == 'l');
  return is_long ? 3 : 0;
}

// \s+(?!\S)|\s+: white space before a word, all but its last character.
int64_t white_space(const Words& words) {
  const int64_t end = words.end_of(0, [&](int64_t i) { return words.is_blank(i); });
  if (end == words.size()) return words.certain(end);
  return std::max<int64_t>(end - 1, 1);
}

int64_t gpt2(const Words& words) {
  if (words.needs(3)) return 0;
  if (const int64_t length = contraction(words, false)) return length;
  const int64_t begin = words.is(0, ' ') ? 1 : 0;
  if (words.is_letter(begin))
    return words.certain(words.end_of(begin, [&](int64_t i) { return words.is_letter(i); }));
  if (words.is_number(begin))
    return words.certain(words.end_of(begin, [&](int64_t i) { return words.is_number(i); }));
  if (words.is_other(begin))
    return words.certain(words.end_of(begin, [&](int64_t i) { return words.is_other(i); }));
  return white_space(words);
}

int64_t qwen2(const Words& words, int64_t most_digits) {
  if (words.needs(4)) return 0;
  if (const int64_t length = contraction(words, true)) return length;
  const bool is_alone = words.is_letter(0) || words.is_number(0) || words.is_line_end(0);
  const int64_t letters = is_alone ? 0 : 1;
  if (words.is_letter(letters))
    return words.certain(words.end_of(letters, [&](int64_t i) { return words.is_letter(i); }));
  if (words.is_number(0))
    return words.end_of(1, [&](int64_t i) { return i < most_digits && words.is_number(i); });
  const int64_t begin = words.is(0, ' ') ? 1 : 0;
  if (words.is_other(begin)) {
    const int64_t end = words.end_of(begin, [&](int64_t i) { return words.is_other(i); });
    return words.certain(words.end_of(end, [&](int64_t i) { return words.is_line_end(i); }));
  }
  // \s*[\r\n]+: white space up to the last end of a line in it.
  const int64_t end = words.end_of(0, [&](int64_t i) { return words.is_blank(i); });
  if (end == words.size() && !words.certain(end)) return 0;
  for (int64_t i = end; i > 0; --i)
    if (words.is_line_end(i - 1)) return i;
  return white_space(words);
}

}  // namespace

int64_t word_length(WordPattern pattern, const Characters& characters, const uint32_t* text,
                    int64_t n, bool is_end) {
  const Words words(characters, text, n, is_end);
  if (pattern == WordPattern::kGpt2) return gpt2(words);
  return qwen2(words, pattern == WordPattern::kQwen2 ? 1 : 3);
}

}  // namespace minifuse
