#include "tokenizer/byte_level/byte_level_tokenizer.h"

#include <algorithm>
#include <array>
#include <unordered_map>

#include "common/check.h"
#include "tokenizer/text_reader.h"
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
class ByteLevelTokenizer::Reader : public TextReader<Reader> {
 public:
  Reader(const ByteLevelTokenizer& tokenizer, int64_t most, Memory& memory,
         std::vector<int32_t>& ids)
      : TextReader(tokenizer.added_, tokenizer.added_normalized_, memory.should_stop, memory.held,
                   most, ids),
        t_(tokenizer),
        memory_(memory) {
    memory_.composer.clear();
    memory_.characters.clear();
  }

 private:
  friend TextReader;

  void take(uint32_t c, uint32_t) {
    if (!t_.composes_) return look_for_added(c);
    memory_.composer.put(c, should_stop_, [&](uint32_t composed) { look_for_added(composed); });
  }

  void end_normalizing() {
    memory_.composer.finish(should_stop_, [&](uint32_t composed) { look_for_added(composed); });
  }

  void divide(uint32_t c) {
    std::vector<uint32_t>& characters = memory_.characters;
    if (is_start_ && t_.adds_prefix_space_ && c != ' ') characters.push_back(' ');
    is_start_ = false;
    characters.push_back(c);
    if (characters.size() < room_) return;
    take_words(false);
    room_ = std::max(kRoom, 2 * characters.size());
  }

  // Takes the words off the front of the characters.
  void take_words(bool is_end) {
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
      if (size > BytePairs::kMostBytes) return leave_to_package();
      t_.pairs_->append(word.data(), size, should_stop_, memory_.pairs, ids_);
      begin += length;
    }
    characters.erase(characters.begin(), characters.begin() + begin);
  }

  void end_words() { take_words(true); }

  const ByteLevelTokenizer& t_;
  Memory& memory_;
  size_t room_ = kRoom;
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
  return append_by<Reader, Memory>(*this, text, most, scratch, ids);
}

}  // namespace minifuse
