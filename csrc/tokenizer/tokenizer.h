// The interface of the native tokenizers: a text's characters in, the ids of its tokens out.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "tokenizer/text.h"

namespace minifuse {

class Tokenizer {
 public:
  enum class Outcome : uint8_t {
    kDone,
    kInvalid,  // the text is not valid Unicode
    kForeign,  // it holds what only the `tokenizers` package treats; its ids are void
  };

  // Asked now and then, on the thread that reads a text. Once it says true it always does, and the
  // ids of that text are void.
  using Stop = std::function<bool()>;

  // Memory for one text at a time.
  class Scratch {
   public:
    virtual ~Scratch() = default;
    Stop should_stop = [] { return false; };
  };

  virtual ~Tokenizer() = default;
  virtual std::unique_ptr<Scratch> make_scratch() const = 0;

  // Appends the ids of a text, without special tokens, until the text ends or there are more than
  // `most`: then there are `most` + 1, and the rest of the text is not looked at. scratch: of this
  // tokenizer.
  virtual Outcome append(const Text& text, int64_t most, Scratch& scratch,
                         std::vector<int32_t>& ids) const = 0;
};

}  // namespace minifuse
