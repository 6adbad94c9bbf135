#include "tokenizer/bert/bert_tokenizer.h"

#include <algorithm>

#include "tokenizer/text_reader.h"

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
class BertTokenizer::Reader : public TextReader<Reader> {
 public:
  Reader(const BertTokenizer& tokenizer, int64_t most, Memory& memory, std::vector<int32_t>& ids)
      : TextReader(tokenizer.added_, tokenizer.added_normalized_, memory.should_stop, memory.held,
                   most, ids),
        t_(tokenizer),
        memory_(memory) {
    memory_.ordered.clear();
  }

 private:
  friend TextReader;

  void take(uint32_t c, uint32_t) {
    if (c >= 128 || may_be_added() || !memory_.ordered.empty()) return clean(c);
    last_ = c;
    const AsciiStep ascii = t_.ascii_[c];
    switch (ascii.step) {
      case Step::kAppend:
        return append_byte(ascii.character);
      case Step::kAlone:
        end_words();
        append_byte(ascii.character);
        return end_words();
      case Step::kEndWord:
        return end_words();
      case Step::kDrop:
        return;
      case Step::kGeneral:
        return clean(c);
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
    // A word with so many is unknown in any order, and no added token has one of them.
    if (static_cast<int64_t>(held.size()) > t_.pieces_.max_characters()) return;
    const auto place = std::upper_bound(held.begin(), held.end(), c, [](uint32_t a, uint32_t b) {
      return Characters::order_class(a) < Characters::order_class(b);
    });
    held.insert(place, c);
  }

  void end_normalizing() { release_ordered(); }

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

  void divide(uint32_t c) {
    const uint8_t properties = t_.characters_.properties(c);
    if (properties & (kSpace | kPunctuation)) end_words();
    if (properties & kSpace) return;
    append_character(c);
    if (properties & kPunctuation) end_words();
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

  void end_words() {
    if (num_characters_ == 0) return;
    if (num_characters_ > t_.pieces_.max_characters())
      ids_.push_back(t_.pieces_.unknown_id());
    else
      t_.pieces_.append(memory_.word.data(), size_, hash_, memory_.prefix_hashes.data(), ids_);
    num_characters_ = size_ = 0;
    hash_ = PieceTable::kEmpty;
  }

  const BertTokenizer& t_;
  Memory& memory_;
  int64_t num_characters_ = 0, size_ = 0;  // of the word that is read
  uint64_t hash_ = PieceTable::kEmpty;
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
    const bool becomes_space = cleans_text_ && (properties & kSpace);
    const Step step = added_normalized_.may_begin_with(becomes_space ? ' ' : small) ? Step::kGeneral
                      : cleans_text_ && (properties & kRemoved)                     ? Step::kDrop
                      : properties & kSpace                                         ? Step::kEndWord
                      : properties & kPunctuation                                   ? Step::kAlone
                                                                                    : Step::kAppend;
    ascii_[c] = {step, static_cast<uint8_t>(small)};
  }
}

std::unique_ptr<Tokenizer::Scratch> BertTokenizer::make_scratch() const {
  return std::make_unique<Memory>(4 * pieces_.max_characters());
}

Tokenizer::Outcome BertTokenizer::append(const Text& text, int64_t most, Scratch& scratch,
                                         std::vector<int32_t>& ids) const {
  return append_by<Reader, Memory>(*this, text, most, scratch, ids);
}

}  // namespace minifuse
