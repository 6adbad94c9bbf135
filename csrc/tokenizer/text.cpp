#include "tokenizer/text.h"

namespace minifuse {

bool is_valid_utf8(std::string_view text) {
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<uint8_t>(text[i]);
    if (first >= 0x80 && (first < 0xC2 || first > 0xF4)) return false;
    const auto size = static_cast<size_t>(length_of_utf8(first));
    if (size > text.size() - i) return false;
    for (size_t k = 1; k < size; ++k)
      if ((static_cast<uint8_t>(text[i + k]) & 0xC0) != 0x80) return false;
    bool is_shortest = true;
    for_each_character(text.substr(i, size), [&](uint32_t c) {
      uint8_t bytes[4];
      is_shortest =
          c < 0x110000 && !is_surrogate(c) && write_utf8(c, bytes) == static_cast<int>(size);
    });
    if (!is_shortest) return false;
    i += size;
  }
  return true;
}

}  // namespace minifuse
