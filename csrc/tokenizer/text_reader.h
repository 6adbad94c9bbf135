// The way through a text that the tokenizers share: added tokens divide it into segments, and reading
// stops as soon as there are enough ids.
#pragma once

#include <cstdint>
#include <vector>

#include "tokenizer/added_tokens.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode/characters.h"

namespace minifuse {

// A Reader is derived from TextReader<Reader> and has
//   take(c, next): normalises a character; next is the one behind it, or 0 at the end. What it makes
//     of it goes to look_for_added();
//   end_normalizing(): passes on what take() holds back;
//   divide(c): takes a normalised character;
//   end_words(): turns what divide() holds back into ids.
template <typename Reader>
class TextReader {
 public:
  // added, added_normalized: looked for in the text itself, and in the normalised text. held: memory.
  TextReader(const AddedTokens& added, const AddedTokens& added_normalized,
             const Tokenizer::Stop& should_stop, std::vector<uint32_t>& held, int64_t most,
             std::vector<int32_t>& ids)
      : ids_(ids),
        should_stop_(should_stop),
        added_(added),
        added_normalized_(added_normalized),
        held_(held),
        most_(ids.size() + static_cast<size_t>(most)),
        has_foreign_(added.has_foreign() || added_normalized.has_foreign()) {
    held_.clear();
  }

  template <typename Character>
  Tokenizer::Outcome read(const Character* text, int64_t length) {
    int64_t i = 0, next_look = kCharactersPerLook;
    for (uint32_t c = 0; i < length && !is_foreign_ && !may_stop_behind(c);) {
      if (i >= next_look) {
        if (should_stop_()) return Tokenizer::Outcome::kDone;
        next_look = i + kCharactersPerLook;
      }
      c = text[i];
      if (is_surrogate(c)) return Tokenizer::Outcome::kInvalid;
      const AddedTokens::Match match =
          added_.may_begin_with(c) ? added_.longest(text + i, length - i) : AddedTokens::Match{};
      if (match.length > 0) {
        end_segment();
        add(match.id);
        i += match.length;
        c = text[i - 1];
      } else {
        self().take(c, i + 1 < length ? text[i + 1] : 0);
        ++i;
      }
    }
    if (i == length) end_segment();
    if (is_foreign_) return Tokenizer::Outcome::kForeign;
    if (has_enough()) ids_.resize(most_ + 1);
    return Tokenizer::Outcome::kDone;
  }

 protected:
  bool has_enough() const { return ids_.size() > most_; }
  bool may_be_added() const { return !held_.empty(); }

  // Holds a normalised character back for as long as it may belong to an added token.
  void look_for_added(uint32_t c) {
    last_ = c;
    added_normalized_.put(
        c, held_, [&](uint32_t passed) { self().divide(passed); }, [&](int32_t id) { add(id); });
  }

  // The rest of the text is not read.
  void leave_to_package() { is_foreign_ = true; }

  std::vector<int32_t>& ids_;
  const Tokenizer::Stop& should_stop_;
  bool is_start_ = true;  // at the beginning of a segment; the Reader says when it is not any more
  uint32_t last_ = 0;  // the normalised character that was passed on last

 private:
  // Less than a millisecond.
  static constexpr int64_t kCharactersPerLook = 1 << 16;

  Reader& self() { return static_cast<Reader&>(*this); }

  // A foreign token may still take the white space before it along, with the ids that it has got.
  bool may_stop_behind(uint32_t c) const {
    if (!has_enough() || !has_foreign_) return has_enough();
    const Characters& characters = Characters::get();
    const int is_space = (characters.properties(c) | characters.properties(last_)) & kSpace;
    return held_.empty() && !is_space;
  }

  void add(int32_t id) {
    self().end_words();
    is_foreign_ |= id == AddedTokens::kForeign;
    ids_.push_back(id);
    is_start_ = true;
  }

  void end_segment() {
    self().end_normalizing();
    added_normalized_.finish(
        held_, [&](uint32_t c) { self().divide(c); }, [&](int32_t id) { add(id); });
    self().end_words();
  }

  const AddedTokens &added_, &added_normalized_;
  std::vector<uint32_t>& held_;
  const size_t most_;
  const bool has_foreign_;
  bool is_foreign_ = false;
};

// Tokenizer::append of a tokenizer with such a Reader and the Memory that its scratch is.
template <typename Reader, typename Memory, typename T>
Tokenizer::Outcome append_by(const T& tokenizer, const Text& text, int64_t most,
                             Tokenizer::Scratch& scratch, std::vector<int32_t>& ids) {
  Reader reader(tokenizer, most, static_cast<Memory&>(scratch), ids);
  return with_characters(
      text, [&](const auto* characters) { return reader.read(characters, text.length); });
}

}  // namespace minifuse
