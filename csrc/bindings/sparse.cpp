// The last step of a sparse encoder: the weight of every word of the vocabulary in a sentence,
// without the matrix of tokens by vocabulary.

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "linear/packed_linear.h"

namespace minifuse {
namespace {

// Scores that exist at a time: of so many rows, for so many words.
constexpr int64_t kBlockRows = 192, kSliceColumns = 512;

// log(1 + x) for x >= 0, by additions, multiplications and divisions in double precision: the same
// float32 on every machine, which the C library's logarithm is not.
double log_of_one_more(double x) {
  // 1 + x = m 2^e with m in [sqrt(1/2), sqrt(2)); log m = 2 atanh(s), s = (m - 1) / (m + 1).
  if (x < 1e-8) return x;
  int exponent = 0;
  double m = std::frexp(1.0 + x, &exponent);
  if (m < 0.70710678118654752) {
    m *= 2;
    --exponent;
  }
  const double s = (m - 1) / (m + 1), s2 = s * s;
  double sum = 0;  // of s^(2 n) / (2 n + 1), whose terms end below 1e-17
  for (int n = 11; n >= 1; --n) sum = (sum + 1.0 / (2 * n + 1)) * s2;
  return 2 * s * (1 + sum) + exponent * 0.69314718055994531;
}

// log(1 + max(0, s)) of the highest score s that a word has in a sentence [batch, N] (Formal et al.
// 2021), or the logarithm of one more than that; zeros for a sentence without rows.
// x: [total_tokens, K].
FloatArray splade_weights(const FloatArray& x, const IntArray& cu_seqlens,
                          const PackedLinear& weight, const FloatArray& bias, bool is_twice) {
  const LinearKernels& kernels = active_isa().linear(weight.format->weight_type);
  check(weight.format == &kernels.format, "weight was packed for ", weight.format->isa, ", wanted ",
        kernels.format.isa, ": pack it again");
  check(weight.format->weight_type != WeightType::kInt8,
        "weight is in int8, wanted float32 or bfloat16");
  check(x.ndim() == 2 && x.shape(1) == weight.K, "x has shape ",
        py::str(x.attr("shape")).cast<std::string>(), ", wanted (rows, ", weight.K, ")");
  check(bias.ndim() == 1 && bias.shape(0) == weight.N, "bias has ", bias.size(),
        " elements, wanted ", weight.N);
  const std::vector<int32_t> offsets = copy_vector("cu_seqlens", cu_seqlens);
  check(!offsets.empty() && offsets.front() == 0 && offsets.back() == x.shape(0) &&
            std::is_sorted(offsets.begin(), offsets.end()),
        "cu_seqlens: wanted to ascend from 0 to the number of rows, ", x.shape(0));
  const int64_t batch = static_cast<int64_t>(offsets.size()) - 1, N = weight.N, M = x.shape(0);
  FloatArray y({static_cast<py::ssize_t>(batch), static_cast<py::ssize_t>(N)});
  if (y.size() == 0) return y;
  float* const out = y.mutable_data();
  const float *rows = x.data(), *biases = bias.data();
  const int64_t columns = weight.format->panel_columns;
  const int64_t slice = kSliceColumns / columns;  // panels
  // A thread takes the words of a slice through all rows.
  const int64_t num_slices = (weight.num_panels + slice - 1) / slice;
  const auto work = [&](Items& slices, int member) {
    ThreadScratch<float> scores(kBlockRows * kSliceColumns);
    ThreadScratch<std::byte> scratch(kernels.scratch_bytes(kBlockRows, weight.K));
    while (const std::optional<int64_t> number = slices.next(member)) {
      const int64_t panel = *number * slice, first = panel * columns;
      const int64_t count = std::min(N - first, kSliceColumns);
      for (int64_t b = 0; b < batch; ++b) std::fill_n(out + b * N + first, count, 0.0f);
      int64_t b = 0;
      for (int64_t row = 0; row < M; row += kBlockRows) {
        if (slices.is_stopped(member)) return;
        const int64_t height = std::min(M - row, kBlockRows);
        LinearParams part = weight.params(rows + row * weight.K, weight.K, scores.data(),
                                          kSliceColumns, height, Activation::kNone);
        part.packed_weight = weight.weight.data() + panel * weight.format->panel_bytes(weight.K);
        part.bias = biases + first;
        part.N = count;
        part.panel_begin = 0;
        part.panel_end = (count + columns - 1) / columns;
        kernels.linear(with_scratch(part, scratch.buffer()));
        for (int64_t i = 0; i < height; ++i) {
          while (offsets[static_cast<size_t>(b + 1)] <= row + i) ++b;
          float* const highest = out + b * N + first;
          const float* const score = scores.data() + i * kSliceColumns;
          for (int64_t c = 0; c < count; ++c)  // NaN is higher than any number
            highest[c] = score[c] <= highest[c] || highest[c] != highest[c] ? highest[c] : score[c];
        }
      }
      for (b = 0; b < batch; ++b)
        for (float *w = out + b * N + first, *last = w + count; w < last; ++w)
          if (*w > 0 && *w <= std::numeric_limits<float>::max()) {
            const double once = log_of_one_more(*w);
            *w = static_cast<float>(is_twice ? log_of_one_more(once) : once);
          }
    }
  };
  const double flops = 2.0 * static_cast<double>(M * weight.K * N);
  compute([&](const ShouldStop& should_stop) {
    Items slices(num_slices, should_stop);
    run_items(slices, threads_for(flops, num_slices), [&](int member) { work(slices, member); });
  });
  return y;
}

}  // namespace

void register_sparse(py::module_& module) {
  module.def("splade_weights", &splade_weights, py::arg("x").noconvert(),
             py::arg("cu_seqlens").noconvert(), py::arg("weight"), py::arg("bias").noconvert(),
             py::arg("is_twice"));
}

}  // namespace minifuse
