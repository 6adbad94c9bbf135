#include "tokenizer/byte_level/byte_level_tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "common/check.h"
#include "tokenizer/unicode/composer.h"

namespace minifuse {
namespace {

// Characters that are collected before words are looked for; twice as many where no word ends.
constexpr size_t kRoom = 256;

std::unique_ptr<const BytePairs> byte_pairs_of(const ByteLevelTokenizerOptions& options) {
  std::unordered_map<std::string_view, int32_t> ids(options.vocabulary.begin(),
                                                    options.vocabulary.end());
  const auto id_of = [&](std::string_view bytes) {
    const auto found = ids.find(bytes);
    check(found != ids.end(), "the vocabulary lacks a piece of ", bytes.size(),
          " bytes that is a byte or in a merge");
    return found->second;
  };
  std::array<int32_t, 256> byte_ids;
  for (int byte = 0; byte < 256; ++byte) {
    const char character = static_cast<char>(byte);
    byte_ids[static_cast<size_t>(byte)] = id_of({&character, 1});
  }
  std::vector<BytePairs::Merge> merges;
  merges.reserve(options.merges.size());
  for (const auto& [first, second] : options.merges)
    merges.push_back({id_of(first), id_of(second), id_of(first + second)});
  std::vector<std::pair<std::string_view, int32_t>> words;
  if (options.takes_words_whole) words.assign(options.vocabulary.begin(), options.vocabulary.end());
  return std::make_unique<const BytePairs>(byte_ids, merges, words);
}

}  // namespace

struct ByteLevelTokenizer::Memory final : Tokenizer::Scratch {
  explicit Memory(const Characters& characters) : composer(characters) {}

  Composer composer;
  std::vector<uint32_t> held;        // characters that may be an added token
  std::vector<uint32_t> characters;  // that are not yet divided into words
  std::vector<uint8_t> word;         // in UTF-8
  BytePairs::Scratch pairs;
};

// Reads one text. A character passes through the steps below in their order.
class ByteLevelTokenizer::Reader {
 public:
  Reader(const ByteLevelTokenizer& tokenizer, int64_t most, Memory& memory,
         std::vector<int32_t>& ids)
      : t_(tokenizer), memory_(memory), ids_(ids), most_(ids.size() + static_cast<size_t>(most)) {
    memory_.composer.clear();
    memory_.held.clear();
    memory_.characters.clear();
  }

  template <typename Character>
  Outcome read(const Character* text, int64_t length) {
    for (int64_t i = 0; i < length && !has_enough() && !is_foreign_;) {
      const uint32_t c = text[i];
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
      compose(c);
      ++i;
    }
    if (!has_enough()) end_segment();
    if (is_foreign_) return Outcome::kForeign;
    if (has_enough()) ids_.resize(most_ + 1);
    return Outcome::kDone;
  }

 private:
  bool has_enough() const { return ids_.size() > most_; }

  void compose(uint32_t c) {
    if (!t_.composes_) return look_for_added(c);
    memory_.composer.put(c, [&](uint32_t composed) { look_for_added(composed); });
  }

  void look_for_added(uint32_t c) {
    t_.added_normalized_.put(
        c, memory_.held, [&](uint32_t passed) { collect(passed); }, [&](int32_t id) { add(id); });
  }

  void add(int32_t id) {
    divide(true);
    is_foreign_ |= id == AddedTokens::kForeign;
    ids_.push_back(id);
    is_start_ = true;
  }

  void collect(uint32_t c) {
    std::vector<uint32_t>& characters = memory_.characters;
    if (is_start_ && t_.adds_prefix_space_ && c != ' ') characters.push_back(' ');
    is_start_ = false;
    characters.push_back(c);
    if (characters.size() < room_) return;
    divide(false);
    room_ = std::max(kRoom, 2 * characters.size());
  }

  // Takes the words off the front of the characters.
  void divide(bool is_end) {
    std::vector<uint32_t>& characters = memory_.characters;
    const auto n = static_cast<int64_t>(characters.size());
    int64_t begin = 0;
    while (begin < n && !has_enough()) {
      const int64_t length =
          word_length(t_.pattern_, t_.characters_, characters.data() + begin, n - begin, is_end);
      if (length == 0) break;
      std::vector<uint8_t>& word = memory_.word;
      word.resize(static_cast<size_t>(4 * length));
      int64_t size = 0;
      for (int64_t i = begin; i < begin + length; ++i)
        size += write_utf8(characters[static_cast<size_t>(i)], &word[static_cast<size_t>(size)]);
      t_.pairs_->append(word.data(), size, memory_.pairs, ids_);
      begin += length;
    }
    characters.erase(characters.begin(), characters.begin() + begin);
  }

  // At the end of the text, and before an added token.
  void end_segment() {
    memory_.composer.finish([&](uint32_t composed) { look_for_added(composed); });
    t_.added_normalized_.finish(
        memory_.held, [&](uint32_t c) { collect(c); }, [&](int32_t id) { add(id); });
    divide(true);
  }

  const ByteLevelTokenizer& t_;
  Memory& memory_;
  std::vector<int32_t>& ids_;
  const size_t most_;
  size_t room_ = kRoom;
  bool is_start_ = true;  // of the text, or behind an added token
  bool is_foreign_ = false;
};

ByteLevelTokenizer::ByteLevelTokenizer(const ByteLevelTokenizerOptions& options)
    : composes_(options.composes),
      adds_prefix_space_(options.adds_prefix_space),
      pattern_(options.pattern),
      pairs_(byte_pairs_of(options)),
      added_(options.added_tokens),
      added_normalized_(options.added_normalized),
      characters_(Characters::get()) {}

std::unique_ptr<Tokenizer::Scratch> ByteLevelTokenizer::make_scratch() const {
  return std::make_unique<Memory>(characters_);
}

Tokenizer::Outcome ByteLevelTokenizer::append(const Text& text, int64_t most, Scratch& scratch,
                                              std::vector<int32_t>& ids) const {
  Reader reader(*this, most, static_cast<Memory&>(scratch), ids);
  return with_characters(
      text, [&](const auto* characters) { return reader.read(characters, text.length); });
}

}  // namespace minifuse
