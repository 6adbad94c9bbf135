#include "tokenizer/unigram/unigram_tokenizer.h"

#include <algorithm>

#include "tokenizer/text_reader.h"

namespace minifuse {
namespace {

constexpr uint32_t kWordStart = 0x2581;  // "▁"
// Clusters of fewer bytes are looked up in the map as a whole; of others, each character.
constexpr int kLongCluster = 6;
// A word that goes on for so many characters is divided as far as it can be, and doubles it if it
// cannot.
constexpr size_t kLongWord = 4096;

}  // namespace

struct UnigramTokenizer::Memory final : Tokenizer::Scratch {
  std::vector<uint32_t> word;          // that is read
  std::vector<uint32_t> held;          // characters that may be an added token
  std::vector<uint32_t> white_space;   // that is dropped if the text ends behind it
  UnigramPieces::Scratch pieces;
};

// Reads one text. A character passes through the steps below in their order.
class UnigramTokenizer::Reader : public TextReader<Reader> {
 public:
  Reader(const UnigramTokenizer& tokenizer, int64_t most, Memory& memory, std::vector<int32_t>& ids)
      : TextReader(tokenizer.added_, tokenizer.added_normalized_, memory.should_stop, memory.held,
                   most, ids),
        t_(tokenizer),
        memory_(memory) {
    memory_.word.clear();
    memory_.white_space.clear();
    memory_.pieces.score = 0;
    memory_.pieces.ends_unknown = false;
  }

 private:
  friend TextReader;

  // ---- normalise: the map ----

  void take(uint32_t c, uint32_t next) {
    if (c < ' ' || c >= 128 || next >= 128 || !boundaries_.begins_before_letter())
      return t_.map_ ? add_to_cluster(c) : map(c);
    // An ASCII character between others is a cluster, but for the ends of lines.
    end_cluster();
    boundaries_ = {};
    const bool holds_nothing = num_spaces_ == 0 && !may_be_added() && memory_.white_space.empty();
    if (!t_.is_plain_[c] || !holds_nothing) return map(c);
    last_ = c;
    continue_word(c);
  }

  void add_to_cluster(uint32_t c) {
    if (boundaries_.begins_before(t_.graphemes_.class_of(c))) end_cluster();
    if (is_long_) return map(c);
    uint8_t bytes[4];
    const int size = write_utf8(c, bytes);
    if (cluster_size_ + size >= kLongCluster) {
      // Too long to be looked up as a whole.
      is_long_ = true;
      for_each_character(cluster(), [&](uint32_t earlier) { map(earlier); });
      return map(c);
    }
    std::copy(bytes, bytes + size, cluster_ + cluster_size_);
    cluster_size_ += size;
  }

  void end_cluster() {
    if (!is_long_ && cluster_size_ > 0) {
      if (const auto mapped = t_.map_->find(cluster()))
        for_each_character(*mapped, [&](uint32_t c) { strip(c); });
      else
        for_each_character(cluster(), [&](uint32_t c) { map(c); });
    }
    is_long_ = false;
    cluster_size_ = 0;
  }

  std::string_view cluster() const {
    return {reinterpret_cast<const char*>(cluster_), static_cast<size_t>(cluster_size_)};
  }

  void map(uint32_t c) {
    if (!t_.map_) return strip(c);
    uint8_t bytes[4];
    const auto size = static_cast<size_t>(write_utf8(c, bytes));
    if (const auto mapped = t_.map_->find({reinterpret_cast<const char*>(bytes), size}))
      for_each_character(*mapped, [&](uint32_t one) { strip(one); });
    else
      strip(c);
  }

  // ---- normalise: white space ----

  void strip(uint32_t c) {
    if (!t_.strips_end_) return collapse(c);
    if (t_.characters_.properties(c) & kSpace) return memory_.white_space.push_back(c);
    for (const uint32_t space : memory_.white_space) collapse(space);
    memory_.white_space.clear();
    collapse(c);
  }

  void collapse(uint32_t c) {
    if (!t_.spaces_become_) return look_for_added(c);
    if (c == ' ') {
      num_spaces_ = std::min(num_spaces_ + 1, 2);
      return;
    }
    release_spaces();
    look_for_added(c);
  }

  void release_spaces() {
    if (num_spaces_ > 0) look_for_added(num_spaces_ == 1 ? ' ' : *t_.spaces_become_);
    num_spaces_ = 0;
  }

  // ---- divide ----

  void divide(uint32_t c) {
    if (t_.splits_at_white_space_ && (t_.characters_.properties(c) & kSpace)) {
      end_words();
      is_start_ = true;
      return;
    }
    if (c == ' ') c = kWordStart;
    if (c == kWordStart) {
      end_words();
      is_start_ = false;
    }
    continue_word(c);
  }

  // ---- words ----

  void continue_word(uint32_t c) {
    if (is_start_ && t_.prepends_) memory_.word.push_back(kWordStart);
    is_start_ = false;
    memory_.word.push_back(c);
    if (memory_.word.size() >= longest_) {
      take_pieces(false);
      longest_ = std::max(kLongWord, 2 * memory_.word.size());
    }
  }

  void end_words() {
    if (memory_.word.empty()) return;
    take_pieces(true);
    longest_ = kLongWord;
  }

  void take_pieces(bool is_end) {
    std::vector<uint32_t>& word = memory_.word;
    const int64_t taken = t_.pieces_.append(word, is_end, should_stop_, memory_.pieces, ids_);
    word.erase(word.begin(), word.begin() + taken);
  }

  void end_normalizing() {
    end_cluster();
    boundaries_ = {};
    memory_.white_space.clear();
    release_spaces();
  }

  const UnigramTokenizer& t_;
  Memory& memory_;
  GraphemeBoundaries boundaries_;
  uint8_t cluster_[kLongCluster];
  int cluster_size_ = 0;    // in bytes
  bool is_long_ = false;    // the cluster is, and its characters are on their way
  int num_spaces_ = 0;      // in a row, counted to two
  size_t longest_ = kLongWord;
};

UnigramTokenizer::UnigramTokenizer(const UnigramTokenizerOptions& options)
    : map_(options.map ? std::make_optional<PrecompiledMap>(*options.map) : std::nullopt),
      strips_end_(options.strips_end),
      spaces_become_(options.spaces_become),
      splits_at_white_space_(options.splits_at_white_space),
      prepends_(options.prepends),
      pieces_(options.vocabulary, options.unknown_id),
      added_(options.added_tokens),
      added_normalized_(options.added_normalized),
      characters_(Characters::get()),
      graphemes_(Graphemes::get()) {
  for (uint32_t c = 0; c < 128; ++c) {
    const char character = static_cast<char>(c);
    is_plain_[c] =
        c > ' ' && !(map_ && map_->find({&character, 1})) && !added_normalized_.may_begin_with(c);
  }
}

std::unique_ptr<Tokenizer::Scratch> UnigramTokenizer::make_scratch() const {
  return std::make_unique<Memory>();
}

Tokenizer::Outcome UnigramTokenizer::append(const Text& text, int64_t most, Scratch& scratch,
                                            std::vector<int32_t>& ids) const {
  return append_by<Reader, Memory>(*this, text, most, scratch, ids);
}

}  // namespace minifuse
