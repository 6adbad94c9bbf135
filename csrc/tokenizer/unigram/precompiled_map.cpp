#include "tokenizer/unigram/precompiled_map.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "common/check.h"
#include "tokenizer/text.h"

namespace minifuse {

static_assert(std::endian::native == std::endian::little);

PrecompiledMap::PrecompiledMap(std::string_view bytes) {
  uint32_t size = 0;
  check(bytes.size() >= sizeof size, "precompiled_charsmap has ", bytes.size(),
        " bytes, wanted its size at least");
  std::memcpy(&size, bytes.data(), sizeof size);
  bytes.remove_prefix(sizeof size);
  check(size % sizeof(uint32_t) == 0 && size >= sizeof(uint32_t) && size <= bytes.size(),
        "precompiled_charsmap says that its trie has ", size, " bytes, and has ", bytes.size());
  units_.resize(size / sizeof(uint32_t));
  std::memcpy(units_.data(), bytes.data(), size);
  strings_ = bytes.substr(size);
  check(is_valid_utf8(strings_), "precompiled_charsmap holds strings that are not valid UTF-8");
}

uint32_t PrecompiledMap::unit(uint32_t place) const {
  check(place < units_.size(), "precompiled_charsmap is damaged: no unit ", place);
  return units_[place];
}

std::optional<std::string_view> PrecompiledMap::find(std::string_view text) const {
  // A unit: bits 0 to 7 the byte that leads to it, 8 whether a string ends here, 9 whether the
  // offset is shifted, 10 to 30 the offset of its children, 31 set in values, which hold no byte.
  const auto offset = [](uint32_t unit) { return (unit >> 10) << ((unit & (1u << 9)) >> 6); };
  uint32_t place = offset(unit(0));
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    if (byte == 0) break;
    place ^= byte;
    const uint32_t current = unit(place);
    if ((current & (1u << 31 | 0xFF)) != byte) break;
    place ^= offset(current);
    if (current >> 8 & 1) {
      const size_t begin = unit(place) & ~(1u << 31);
      check(begin < strings_.size() && (static_cast<uint8_t>(strings_[begin]) & 0xC0) != 0x80,
            "precompiled_charsmap is damaged: no string begins at ", begin);
      const size_t end = std::min(strings_.find('\0', begin), strings_.size());
      return std::string_view(strings_).substr(begin, end - begin);
    }
  }
  return std::nullopt;
}

}  // namespace minifuse
