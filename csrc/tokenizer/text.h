// A text as Python holds it: code points of one width.
#pragma once

#include <cstdint>
#include <string_view>

namespace minifuse {

struct Text {
  const void* characters;
  int64_t length;
  int width;  // bytes of a code point: 1, 2 or 4
};

// f(characters), a pointer to code points of the text's own width.
template <typename F>
auto with_characters(const Text& text, F f) {
  if (text.width == 1) return f(static_cast<const uint8_t*>(text.characters));
  if (text.width == 2) return f(static_cast<const uint16_t*>(text.characters));
  return f(static_cast<const uint32_t*>(text.characters));
}

// Half of a pair of UTF-16, which is no character and no valid text.
constexpr bool is_surrogate(uint32_t c) { return c >= 0xD800 && c < 0xE000; }

// Writes c in UTF-8 and returns the number of bytes, at most 4.
inline int write_utf8(uint32_t c, uint8_t* bytes) {
  if (c < 0x80) {
    bytes[0] = static_cast<uint8_t>(c);
    return 1;
  }
  const int size = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
  for (int i = size - 1; i > 0; --i, c >>= 6) bytes[i] = static_cast<uint8_t>(0x80 | (c & 0x3F));
  bytes[0] = static_cast<uint8_t>((0xF0 << (4 - size)) | c);
  return size;
}

// Bytes of the character in UTF-8 that begins with this byte.
constexpr int64_t length_of_utf8(uint8_t first) {
  return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

// Calls f with each code point of valid UTF-8.
template <typename F>
void for_each_character(std::string_view text, F f) {
  for (size_t i = 0; i < text.size();) {
    const auto first = static_cast<uint8_t>(text[i]);
    const auto size = static_cast<size_t>(length_of_utf8(first));
    uint32_t c = size == 1 ? first : first & (0x7Fu >> size);
    for (size_t k = 1; k < size; ++k) c = c << 6 | (static_cast<uint8_t>(text[i + k]) & 0x3F);
    f(c);
    i += size;
  }
}

bool is_valid_utf8(std::string_view text);

}  // namespace minifuse
