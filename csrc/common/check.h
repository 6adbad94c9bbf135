// Errors as values people can act on: check() throws std::invalid_argument, which pybind11 turns
// into ValueError. A message names the argument, what is wanted and what was given.
// Never included by an instruction set's file.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace minifuse {

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

template <typename... Parts>
void check(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

}  // namespace minifuse
