// Watches the steps of a layer: the time of each stage, and the inputs of each matrix. Neither costs
// anything where it was not asked for.
#pragma once

#include <cstring>

#include "common/types.h"
#include "model/weights/weights.h"

namespace minifuse {

// Rows of activations in a chunk, float32.
struct Rows {
  float* data;
  int64_t stride;  // floats from row to row
  int64_t first, count;  // place of the first row in the chunk, and how many there are

  // Returns a part of the rows.
  Rows part(int64_t begin, int64_t end) const {
    return {data + begin * stride, stride, first + begin, end - begin};
  }
};

class Observer {
 public:
  // ticks: null where nobody asked for times. matrix_inputs: [rows of the chunk, width], or null.
  Observer(StageTicks* ticks, float* matrix_inputs, int64_t width)
      : ticks_(ticks), matrix_inputs_(matrix_inputs), width_(width) {}

  // For the kernels that count stages of their own.
  StageTicks* ticks() const { return ticks_; }

  // Runs f and adds its time to a stage, but for the stages that f counts itself.
  template <typename F>
  void time(uint64_t StageTicks::* stage, F f) const {
    if (!ticks_) return f();
    const auto inside = [&] {
      return ticks_->quantization + ticks_->activation + ticks_->layer_norm;
    };
    const uint64_t start = ticks_now(), before = inside();
    f();
    ticks_->*stage += ticks_now() - start - (inside() - before);
  }

  // Keeps the inputs of a matrix whose columns begin at `column` of matrix_inputs.
  void input(const Rows& rows, int64_t column, int64_t K) const {
    if (!matrix_inputs_) return;
    for (int64_t row = 0; row < rows.count; ++row)
      std::memcpy(matrix_inputs_ + (rows.first + row) * width_ + column,
                  rows.data + row * rows.stride, static_cast<size_t>(K) * sizeof(float));
  }

 private:
  StageTicks* ticks_;
  float* matrix_inputs_;
  int64_t width_;
};

}  // namespace minifuse
