// Search among the vectors of an index: segments are borrowed under the GIL, which is then released.
// Shapes and meanings are in python/minifuse/search/index.py.

#include "search/search.h"

#include <optional>

#include "bindings/bindings.h"
#include "bindings/share.h"
#include "linear/quantize.h"

namespace minifuse {
namespace {

using IdArray = py::array_t<int64_t, py::array::c_style>;

// (vectors [count, stride], scale [count, 2] or None): float32, bfloat16 bits in uint16, or codes in
// uint8.
using SegmentArrays = std::vector<std::pair<py::array, std::optional<FloatArray>>>;

SearchSpace borrow_space(const SegmentArrays& segments, const std::string& dtype, int64_t dim,
                         int64_t stride) {
  SearchSpace space{parse_weight_type(dtype), dim, stride, {}};
  check(dim >= 1 && dim <= (1 << 16), "dim is ", dim, ", wanted 1..65536");
  check(stride >= dim, "stride is ", stride, ", wanted at least dim=", dim);
  // Kernels read four codes at a time.
  check(space.type != WeightType::kInt8 || stride % 4 == 0, "stride is ", stride,
        ", wanted a multiple of 4 for codes");
  const py::dtype wanted = space.type == WeightType::kFloat32    ? py::dtype::of<float>()
                           : space.type == WeightType::kBfloat16 ? py::dtype::of<uint16_t>()
                                                                 : py::dtype::of<uint8_t>();
  const py::ssize_t itemsize = wanted.itemsize();
  int64_t first_id = 0;
  for (const auto& [vectors, scale] : segments) {
    // By its meaning: an array that was unpickled has another object for its dtype.
    check(vectors.dtype().equal(wanted), "vectors have another dtype than ", dtype);
    check(vectors.ndim() == 2 && vectors.shape(1) == stride && vectors.strides(1) == itemsize &&
              vectors.strides(0) == stride * itemsize,
          "vectors: wanted C-contiguous [count, ", stride, "]");
    const int64_t count = vectors.shape(0);
    if (space.type == WeightType::kInt8)
      check(scale && scale->ndim() == 2 && scale->shape(0) == count && scale->shape(1) == 2,
            "scale: wanted [", count, ", 2]");
    space.segments.push_back({vectors.data(), scale ? scale->data() : nullptr, count, first_id});
    first_id += count;
  }
  return space;
}

void check_queries(const FloatArray& queries, int64_t dim) {
  check(queries.ndim() == 2 && queries.shape(1) == dim, "queries: wanted [num_queries, ", dim, "]");
}

// Returns what run(scores, ids, should_stop) has found: two arrays [num_queries, k].
template <typename Run>
py::tuple run_search(int64_t num_queries, int64_t k, Run run) {
  FloatArray scores({num_queries, k});
  IdArray ids({num_queries, k});
  float* score_data = scores.mutable_data();
  int64_t* id_data = ids.mutable_data();
  compute([&](const ShouldStop& should_stop) { run(score_data, id_data, should_stop); });
  return py::make_tuple(scores, ids);
}

py::tuple search_segments(const SegmentArrays& segments, const std::string& dtype, int64_t dim,
                          int64_t stride, const FloatArray& queries, int64_t k, int num_threads) {
  const SearchSpace space = borrow_space(segments, dtype, dim, stride);
  check_queries(queries, dim);
  check(k >= 0 && k <= space.num_vectors(), "k is ", k, ", wanted 0..", space.num_vectors());
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  const InstructionSet& isa = active_isa();
  const float* rows = queries.data();
  const int64_t num_queries = queries.shape(0);
  return run_search(
      num_queries, k, [&](float* scores, int64_t* ids, const ShouldStop& should_stop) {
        search(isa, space, rows, num_queries, k, num_threads, should_stop, scores, ids);
      });
}

py::tuple rescore_candidates(const SegmentArrays& segments, int64_t dim, const FloatArray& queries,
                             const IdArray& candidates, int64_t k, int num_threads) {
  const SearchSpace space = borrow_space(segments, "float32", dim, dim);
  check_queries(queries, dim);
  check(candidates.ndim() == 2 && candidates.shape(0) == queries.shape(0), "candidates: wanted [",
        queries.shape(0), ", any]");
  const int64_t num_vectors = space.num_vectors(), width = candidates.shape(1);
  check(k >= 0 && k <= width, "k is ", k, ", wanted 0..", width);
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  // A copy: another thread may change the array after the check.
  const std::vector<int64_t> checked(candidates.data(), candidates.data() + candidates.size());
  for (const int64_t id : checked)
    check(id >= -1 && id < num_vectors, "candidate ", id, ", wanted -1..", num_vectors - 1);
  const InstructionSet& isa = active_isa();
  const float* rows = queries.data();
  const int64_t num_queries = queries.shape(0);
  return run_search(num_queries, k,
                    [&](float* scores, int64_t* ids, const ShouldStop& should_stop) {
                      rescore(isa, space, rows, num_queries, checked.data(), width, k, num_threads,
                              should_stop, scores, ids);
                    });
}

// x [count, dim] -> codes [count, stride], scale [count, 2].
py::tuple quantize_vectors(const FloatArray& x, int64_t stride) {
  check(x.ndim() == 2 && x.shape(1) >= 1, "x: wanted [count, dim], dim at least 1");
  check(stride >= x.shape(1) && stride <= x.shape(1) + 64, "stride is ", stride, ", wanted ",
        x.shape(1), "..", x.shape(1) + 64);
  ByteArray codes({static_cast<py::ssize_t>(x.shape(0)), static_cast<py::ssize_t>(stride)});
  FloatArray scale({static_cast<py::ssize_t>(x.shape(0)), py::ssize_t{2}});
  const Kernels& kernels = active_isa().kernels;
  const float* data = x.data();
  const int64_t count = x.shape(0), dim = x.shape(1);
  uint8_t* code_data = codes.mutable_data();
  float* scale_data = scale.mutable_data();
  compute([&](const ShouldStop& should_stop) {
    share(count, 1, kMoveCost * static_cast<double>(count * dim), should_stop,
          [&](int64_t begin, int64_t end) {
            kernels.quantize_vectors(data + begin * dim, end - begin, dim,
                                     code_data + begin * stride, stride, scale_data + begin * 2);
          });
  });
  return py::make_tuple(codes, scale);
}

// The bits of the nearest bfloat16, ties to even.
py::array_t<uint16_t> round_to_bfloat16(const FloatArray& x) {
  py::array_t<uint16_t> bits(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
  if (bits.size() == 0) return bits;
  const float* from = x.data();
  uint16_t* to = bits.mutable_data();
  const int64_t size = bits.size();
  compute([&](const ShouldStop& should_stop) {
    share(size, 64, kMoveCost * static_cast<double>(size), should_stop,
          [&](int64_t begin, int64_t end) { to_bfloat16(from + begin, end - begin, to + begin); });
  });
  return bits;
}

}  // namespace

void register_search(py::module_& module) {
  module.def("search", &search_segments, py::arg("segments"), py::arg("dtype"), py::arg("dim"),
             py::arg("stride"), py::arg("queries").noconvert(), py::arg("k"),
             py::arg("num_threads"));
  module.def("rescore", &rescore_candidates, py::arg("segments"), py::arg("dim"),
             py::arg("queries").noconvert(), py::arg("candidates").noconvert(), py::arg("k"),
             py::arg("num_threads"));
  module.def("quantize_vectors", &quantize_vectors, py::arg("x").noconvert(), py::arg("stride"));
  module.def("to_bfloat16", &round_to_bfloat16, py::arg("x").noconvert());
}

}  // namespace minifuse
