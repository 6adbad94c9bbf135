// Tokenizers: Python strings in, packed token ids out.

#include <algorithm>
#include <array>

#include "bindings/bindings.h"
#include "tokenizer/batch.h"
#include "tokenizer/bert/bert_tokenizer.h"
#include "tokenizer/byte_level/byte_level_tokenizer.h"
#include "tokenizer/unigram/unigram_tokenizer.h"

namespace minifuse {
namespace {

using Vocabulary = std::vector<std::pair<std::string, int32_t>>;
using Added = std::vector<std::pair<std::u32string, int32_t>>;

void check_added(const Added& added) {
  for (const auto& [token, id] : added) check(!token.empty(), "an added token is empty");
}

void check_size(int64_t num_bytes) {
  check(num_bytes < int64_t{1} << 31, "the vocabulary has ", num_bytes, " bytes, wanted < 2^31");
}

// A piece of a vocabulary. Bytes, which pybind11 would take as well, need not be UTF-8.
std::string piece_of(py::handle text) {
  check(PyUnicode_Check(text.ptr()), "a piece of the vocabulary is no string");
  return text.cast<std::string>();
}

std::unique_ptr<BertTokenizer> make_bert_tokenizer(
    const py::dict& vocabulary, const std::string& continuation_prefix, int32_t unknown_id,
    int64_t max_word_characters, bool cleans_text, bool separates_chinese, bool strips_accents,
    bool lowers, const Added& added_tokens, const Added& added_normalized) {
  constexpr int64_t kMostWordCharacters = 1 << 10;  // each prefix is looked up
  check(max_word_characters >= 0 && max_word_characters <= kMostWordCharacters,
        "max_word_characters is ", max_word_characters, ", wanted 0..", kMostWordCharacters);
  check_added(added_tokens);
  check_added(added_normalized);
  Vocabulary pieces;
  pieces.reserve(vocabulary.size());
  int64_t num_bytes = 0;
  for (const auto& [piece, id] : vocabulary) {
    pieces.emplace_back(piece_of(piece), id.cast<int32_t>());
    check(pieces.back().second >= 0, "an id of the vocabulary is negative");
    num_bytes += static_cast<int64_t>(pieces.back().first.size());
  }
  check_size(num_bytes);
  return std::make_unique<BertTokenizer>(BertTokenizerOptions{
      .cleans_text = cleans_text,
      .separates_chinese = separates_chinese,
      .strips_accents = strips_accents,
      .lowers = lowers,
      .vocabulary = pieces,
      .continuation_prefix = continuation_prefix,
      .unknown_id = unknown_id,
      .max_word_characters = max_word_characters,
      .added_tokens = added_tokens,
      .added_normalized = added_normalized,
  });
}

std::unique_ptr<UnigramTokenizer> make_unigram_tokenizer(
    const py::list& vocabulary, int32_t unknown_id, const std::optional<py::bytes>& map,
    bool strips_end, std::optional<char32_t> spaces_become, bool splits_at_white_space,
    bool prepends, const Added& added_tokens, const Added& added_normalized) {
  UnigramTokenizerOptions options{
      .map = map ? std::optional<std::string>(*map) : std::nullopt,
      .strips_end = strips_end,
      .spaces_become = spaces_become,
      .splits_at_white_space = splits_at_white_space,
      .prepends = prepends,
      .vocabulary = {},
      .unknown_id = unknown_id,
      .added_tokens = added_tokens,
      .added_normalized = added_normalized,
  };
  check_added(added_tokens);
  check_added(added_normalized);
  int64_t num_bytes = 0;
  options.vocabulary.reserve(vocabulary.size());
  for (const py::handle piece : vocabulary) {
    const auto [text, score] = piece.cast<std::pair<py::object, double>>();
    options.vocabulary.emplace_back(piece_of(text), score);
    num_bytes += static_cast<int64_t>(options.vocabulary.back().first.size());
  }
  check_size(num_bytes);
  const auto size = static_cast<int64_t>(options.vocabulary.size());
  check(unknown_id >= 0 && unknown_id < size, "unknown_id is ", unknown_id, ", wanted 0..",
        size - 1);
  return std::make_unique<UnigramTokenizer>(options);
}

WordPattern parse_pattern(const std::string& name) {
  if (name == "gpt2") return WordPattern::kGpt2;
  if (name == "qwen2") return WordPattern::kQwen2;
  check(name == "llama3", "pattern is '", name, "', wanted 'gpt2', 'qwen2' or 'llama3'");
  return WordPattern::kLlama3;
}

// Byte-level vocabularies are written in characters that can be printed: a byte that can be is
// itself, and the others are U+0100 and those behind it, in their order.
std::array<int, 512> bytes_of_characters() {
  std::array<int, 512> bytes;
  bytes.fill(-1);
  for (int byte = 0, next = 256; byte < 256; ++byte) {
    const bool prints =
        (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    bytes[static_cast<size_t>(prints ? byte : next++)] = byte;
  }
  return bytes;
}

// Its bytes; nothing where a character stands for none, as in added tokens.
std::optional<std::string> bytes_of(const std::string& piece) {
  static const std::array<int, 512> bytes = bytes_of_characters();
  std::string result;
  bool is_whole = true;
  for_each_character(piece, [&](uint32_t c) {
    const int byte = c < bytes.size() ? bytes[c] : -1;
    is_whole &= byte >= 0;
    result += static_cast<char>(byte);
  });
  return is_whole ? std::make_optional(result) : std::nullopt;
}

std::unique_ptr<ByteLevelTokenizer> make_byte_level_tokenizer(
    const py::dict& vocabulary, const py::list& merges, bool composes, bool adds_prefix_space,
    const std::string& pattern, bool takes_words_whole, const Added& added_tokens,
    const Added& added_normalized) {
  check_added(added_tokens);
  check_added(added_normalized);
  ByteLevelTokenizerOptions options{
      .composes = composes,
      .adds_prefix_space = adds_prefix_space,
      .pattern = parse_pattern(pattern),
      .vocabulary = {},
      .merges = {},
      .takes_words_whole = takes_words_whole,
      .added_tokens = added_tokens,
      .added_normalized = added_normalized,
  };
  int64_t num_bytes = 0;
  for (const auto& [piece, id] : vocabulary) {
    auto bytes = bytes_of(piece_of(piece));
    if (!bytes) continue;
    num_bytes += static_cast<int64_t>(bytes->size());
    options.vocabulary.emplace_back(std::move(*bytes), id.cast<int32_t>());
    check(options.vocabulary.back().second >= 0, "an id of the vocabulary is negative");
  }
  check_size(num_bytes);
  options.merges.reserve(merges.size());
  for (const py::handle merge : merges) {
    const auto [first, second] = merge.cast<std::pair<py::object, py::object>>();
    auto first_bytes = bytes_of(piece_of(first)), second_bytes = bytes_of(piece_of(second));
    check(first_bytes && second_bytes, "a merge holds a character that stands for no byte");
    options.merges.emplace_back(std::move(*first_bytes), std::move(*second_bytes));
  }
  return std::make_unique<ByteLevelTokenizer>(options);
}

Text view(PyObject* text) {
#if PY_VERSION_HEX < 0x030C0000
  if (PyUnicode_READY(text) != 0) throw py::error_already_set();
#endif
  return {PyUnicode_DATA(text), static_cast<int64_t>(PyUnicode_GET_LENGTH(text)),
          static_cast<int>(PyUnicode_KIND(text))};
}

// A copy [size]. NumPy's own way to copy gives the GIL away, as no daemon thread may that could be
// ended then (see ReleaseGil).
template <typename T, typename U>
py::array_t<T> array_of(const std::vector<U>& values) {
  py::array_t<T> array(static_cast<py::ssize_t>(values.size()));
  std::copy(values.begin(), values.end(), array.mutable_data());
  return array;
}

// (ids int32 [total_tokens], seqlens int64 [batch], truncated bool [batch], foreign): the places of
// texts that only the `tokenizers` package treats, which have no ids here. None where a text holds
// a lone surrogate.
py::object encode(const Tokenizer& tokenizer, const py::sequence& sentences,
                  const std::vector<int32_t>& prefix, const std::vector<int32_t>& suffix,
                  int64_t max_length, int num_threads) {
  check(max_length >= 0, "max_length is ", max_length, ", wanted >= 0");
  check(num_threads >= 1, "num_threads is ", num_threads, ", wanted >= 1");
  // Holds the strings for as long as their characters are read, whatever becomes of the list.
  const py::tuple kept(sentences);
  std::vector<Text> texts;
  texts.reserve(kept.size());
  for (const py::handle text : kept) {
    if (!PyUnicode_Check(text.ptr()))
      throw py::type_error("sentences: wanted strings, got " +
                           std::string(Py_TYPE(text.ptr())->tp_name));
    texts.push_back(view(text.ptr()));
  }
  TokenizedTexts tokens;
  compute([&](const ShouldStop& should_stop) {
    tokens = tokenize(tokenizer, texts, {prefix, suffix, max_length}, num_threads, should_stop);
  });
  if (tokens.invalid >= 0) return py::none();
  return py::make_tuple(array_of<int32_t>(tokens.ids), array_of<int64_t>(tokens.lengths),
                        array_of<bool>(tokens.truncated), tokens.foreign);
}

}  // namespace

void register_tokenizer(py::module_& module) {
  py::class_<Tokenizer>(module, "Tokenizer")
      .def("encode", &encode, py::arg("sentences"), py::kw_only(), py::arg("prefix"),
           py::arg("suffix"), py::arg("max_length"), py::arg("num_threads"));
  py::class_<BertTokenizer, Tokenizer>(module, "BertTokenizer")
      .def("__init__", constructor(&make_bert_tokenizer), py::detail::is_new_style_constructor(),
           py::arg("vocabulary"), py::kw_only(), py::arg("continuation_prefix"),
           py::arg("unknown_id"), py::arg("max_word_characters"), py::arg("cleans_text"),
           py::arg("separates_chinese"), py::arg("strips_accents"), py::arg("lowers"),
           py::arg("added_tokens"), py::arg("added_normalized"));
  py::class_<ByteLevelTokenizer, Tokenizer>(module, "ByteLevelTokenizer")
      .def("__init__", constructor(&make_byte_level_tokenizer),
           py::detail::is_new_style_constructor(), py::arg("vocabulary"), py::arg("merges"),
           py::kw_only(), py::arg("composes"), py::arg("adds_prefix_space"), py::arg("pattern"),
           py::arg("takes_words_whole"), py::arg("added_tokens"), py::arg("added_normalized"));
  py::class_<UnigramTokenizer, Tokenizer>(module, "UnigramTokenizer")
      .def("__init__", constructor(&make_unigram_tokenizer), py::detail::is_new_style_constructor(),
           py::arg("vocabulary"), py::kw_only(), py::arg("unknown_id"), py::arg("map"),
           py::arg("strips_end"), py::arg("spaces_become"), py::arg("splits_at_white_space"),
           py::arg("prepends"), py::arg("added_tokens"), py::arg("added_normalized"));
}

}  // namespace minifuse
