#include "tokenizer/bert/bert_tokenizer.h"

#include <algorithm>

namespace minifuse {

struct BertTokenizer::Memory final : Tokenizer::Scratch {
  explicit Memory(int64_t most_bytes)
      : word(static_cast<size_t>(most_bytes)), prefix_hashes(word.size()) {}

  std::vector<uint8_t> word;            // the word that is read, in UTF-8
  std::vector<uint64_t> prefix_hashes;  // of its prefixes
  std::vector<uint32_t> held;           // characters that may be an added token
  std::vector<uint32_t> ordered;        // marks in a row
};

// Reads one text. A character passes through the steps below in their order, each of which may drop
// it, replace it or hold it back; what arrives at divide() is the normalised text.
class BertTokenizer::Reader {
 public:
  Reader(const BertTokenizer& tokenizer, int64_t most, Memory& memory, std::vector<int32_t>& ids)
      : t_(tokenizer), memory_(memory), ids_(ids), most_(ids.size() + static_cast<size_t>(most)) {
    memory_.held.clear();
    memory_.ordered.clear();
  }

  template <typename Character>
  Outcome read(const Character* text, int64_t length) {
    for (int64_t i = 0; i < length && !has_enough() && !is_foreign_;) {
      const uint32_t c = text[i];
      if (c < 128 && holds_nothing()) {
        const AsciiStep ascii = t_.ascii_[c];
        if (ascii.step != Step::kGeneral) {
          take(ascii);
          ++i;
          continue;
        }
      }
      if (is_surrogate(c)) return Outcome::kInvalid;
      if (t_.added_.may_begin_with(c)) {
        const AddedTokens::Match match = t_.added_.longest(text + i, length - i);
        if (match.length > 0) {
          end_segment();
          add(match.id);
          i += match.length;
          continue;
        }
      }
      clean(c);
      ++i;
    }
    if (!has_enough()) end_segment();
    if (is_foreign_) return Outcome::kForeign;
    if (has_enough()) ids_.resize(most_ + 1);
    return Outcome::kDone;
  }

 private:
  bool has_enough() const { return ids_.size() > most_; }
  bool holds_nothing() const { return memory_.held.empty() && memory_.ordered.empty(); }

  void take(AsciiStep ascii) {
    switch (ascii.step) {
      case Step::kAppend:
        append_byte(ascii.character);
        break;
      case Step::kAlone:
        end_word();
        append_byte(ascii.character);
        end_word();
        break;
      case Step::kEndWord:
        end_word();
        break;
      default:
        break;
    }
  }

  // ---- normalise ----

  void clean(uint32_t c) {
    const uint8_t properties = t_.characters_.properties(c);
    if (t_.cleans_text_) {
      if (properties & kRemoved) return;
      if (properties & kSpace) c = ' ';
    }
    const bool is_chinese = t_.separates_chinese_ && (properties & kChinese);
    if (is_chinese) decompose(' ');
    decompose(c);
    if (is_chinese) decompose(' ');
  }

  // Unicode's form D without accents.
  void decompose(uint32_t c) {
    if (!t_.strips_accents_) return lower(c);
    uint32_t parts[kMostCodePoints] = {c};
    const bool changes = t_.characters_.properties(c) & kDecomposes;
    const int size = changes ? Characters::decompose(c, parts) : 1;
    for (int i = 0; i < size; ++i) {
      const uint8_t properties = t_.characters_.properties(parts[i]);
      // Marks are sorted within a row of them, which any other character ends.
      if (!(properties & kOrdered)) release_ordered();
      if (properties & kMark) continue;
      if (properties & kOrdered)
        hold_ordered(parts[i]);
      else
        lower(parts[i]);
    }
  }

  void hold_ordered(uint32_t c) {
    std::vector<uint32_t>& held = memory_.ordered;
    // A word with so many is unknown in any order.
    if (static_cast<int64_t>(held.size()) > t_.pieces_.max_characters()) return;
    const auto place = std::upper_bound(held.begin(), held.end(), c, [](uint32_t a, uint32_t b) {
      return Characters::order_class(a) < Characters::order_class(b);
    });
    held.insert(place, c);
  }

  void release_ordered() {
    for (const uint32_t c : memory_.ordered) lower(c);
    memory_.ordered.clear();
  }

  void lower(uint32_t c) {
    if (!t_.lowers_ || !(t_.characters_.properties(c) & kLowers)) return look_for_added(c);
    uint32_t small[kMostCodePoints];
    const int size = Characters::lower(c, small);
    for (int i = 0; i < size; ++i) look_for_added(small[i]);
  }

  // ---- divide ----

  void look_for_added(uint32_t c) {
    t_.added_normalized_.put(
        c, memory_.held, [&](uint32_t passed) { divide(passed); }, [&](int32_t id) { add(id); });
  }

  void add(int32_t id) {
    end_word();
    is_foreign_ |= id == AddedTokens::kForeign;
    ids_.push_back(id);
  }

  void divide(uint32_t c) {
    const uint8_t properties = t_.characters_.properties(c);
    if (properties & (kSpace | kPunctuation)) end_word();
    if (properties & kSpace) return;
    append_character(c);
    if (properties & kPunctuation) end_word();
  }

  // ---- words ----

  void append_byte(uint8_t byte) {
    // One character more than any word that is looked up: it is unknown then.
    if (num_characters_ >= t_.pieces_.max_characters()) {
      num_characters_ = t_.pieces_.max_characters() + 1;
      return;
    }
    ++num_characters_;
    memory_.word[static_cast<size_t>(size_++)] = byte;
    hash_ = PieceTable::extended(hash_, byte);
  }

  void append_character(uint32_t c) {
    if (num_characters_ >= t_.pieces_.max_characters()) {
      num_characters_ = t_.pieces_.max_characters() + 1;
      return;
    }
    ++num_characters_;
    const int64_t begin = size_;
    size_ += write_utf8(c, &memory_.word[static_cast<size_t>(begin)]);
    for (int64_t i = begin; i < size_; ++i)
      hash_ = PieceTable::extended(hash_, memory_.word[static_cast<size_t>(i)]);
  }

  void end_word() {
    if (num_characters_ == 0) return;
    if (num_characters_ > t_.pieces_.max_characters())
      ids_.push_back(t_.pieces_.unknown_id());
    else
      t_.pieces_.append(memory_.word.data(), size_, hash_, memory_.prefix_hashes.data(), ids_);
    num_characters_ = size_ = 0;
    hash_ = PieceTable::kEmpty;
  }

  // At the end of the text, and before an added token.
  void end_segment() {
    release_ordered();
    t_.added_normalized_.finish(
        memory_.held, [&](uint32_t c) { divide(c); }, [&](int32_t id) { add(id); });
    end_word();
  }

  const BertTokenizer& t_;
  Memory& memory_;
  std::vector<int32_t>& ids_;
  const size_t most_;
  int64_t num_characters_ = 0, size_ = 0;  // of the word that is read
  uint64_t hash_ = PieceTable::kEmpty;
  bool is_foreign_ = false;
};

BertTokenizer::BertTokenizer(const BertTokenizerOptions& options)
    : cleans_text_(options.cleans_text),
      separates_chinese_(options.separates_chinese),
      strips_accents_(options.strips_accents),
      lowers_(options.lowers),
      pieces_(options.vocabulary, options.continuation_prefix, options.unknown_id,
              options.max_word_characters),
      added_(options.added_tokens),
      added_normalized_(options.added_normalized),
      characters_(Characters::get()) {
  for (uint32_t c = 0; c < 128; ++c) {
    const uint8_t properties = characters_.properties(c);
    const bool is_upper = lowers_ && (properties & kLowers);
    const uint32_t small = is_upper ? c + ('a' - 'A') : c;
    const Step step = added_.may_begin_with(c) || added_normalized_.may_begin_with(small)
                          ? Step::kGeneral
                      : cleans_text_ && (properties & kRemoved) ? Step::kDrop
                      : properties & kSpace                     ? Step::kEndWord
                      : properties & kPunctuation               ? Step::kAlone
                                                                : Step::kAppend;
    ascii_[c] = {step, static_cast<uint8_t>(small)};
  }
}

std::unique_ptr<Tokenizer::Scratch> BertTokenizer::make_scratch() const {
  return std::make_unique<Memory>(4 * pieces_.max_characters());
}

Tokenizer::Outcome BertTokenizer::append(const Text& text, int64_t most, Scratch& scratch,
                                         std::vector<int32_t>& ids) const {
  Reader reader(*this, most, static_cast<Memory&>(scratch), ids);
  return with_characters(
      text, [&](const auto* characters) { return reader.read(characters, text.length); });
}

}  // namespace minifuse
