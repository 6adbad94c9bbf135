// SentencePiece's map of normalisation (Kudo and Richardson 2018), as a tokenizer.json holds it: a
// trie of byte strings in a double array, and the string that stands for each.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace minifuse {

class PrecompiledMap {
 public:
  // bytes: size of the trie in bytes as uint32, its units, and strings that end with a zero, all in
  // little endian. Throws std::invalid_argument where they are damaged.
  explicit PrecompiledMap(std::string_view bytes);

  // Returns the string for the shortest beginning of `text` that the trie has, if it has any.
  // Throws std::invalid_argument where the map is damaged there.
  std::optional<std::string_view> find(std::string_view text) const;

 private:
  uint32_t unit(uint32_t place) const;

  std::vector<uint32_t> units_;
  std::string strings_;
};

}  // namespace minifuse
