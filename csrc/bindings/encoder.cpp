// The Encoder class: weights in by name, packed tokens in, vectors out. Arrays are borrowed under
// the GIL, which is then released for the computation.

#include "model/encoder.h"

#include <algorithm>
#include <map>
#include <tuple>

#include "bindings/description.h"
#include "bindings/encode.h"

namespace minifuse {

namespace {

void run(const Encoder& encoder, const Batch& batch, const Outputs& outputs, int64_t batch_size,
         int num_threads) {
  compute([&](const ShouldStop& should_stop) {
    encoder.encode(batch, outputs, batch_size, num_threads, should_stop);
  });
}

FloatArray encode(const Encoder& encoder, const IntArray& ids, const IntArray& cu_seqlens,
                  const std::vector<std::string>& poolings, int64_t pool_from, int64_t batch_size,
                  int num_threads, const TokenTypes& token_types) {
  return encode_pooled(encoder.description().hidden_size, OwnedBatch(ids, cu_seqlens, token_types),
                       poolings, pool_from, [&](const Batch& batch, const Outputs& outputs) {
                         run(encoder, batch, outputs, batch_size, num_threads);
                       });
}

std::pair<FloatArray, FloatArray> encode_with_tokens(const Encoder& encoder, const IntArray& ids,
                                                     const IntArray& cu_seqlens,
                                                     const std::vector<std::string>& poolings,
                                                     int64_t pool_from, int64_t batch_size,
                                                     int num_threads,
                                                     const TokenTypes& token_types) {
  return encode_both(encoder.description().hidden_size, OwnedBatch(ids, cu_seqlens, token_types),
                     poolings, pool_from, [&](const Batch& batch, const Outputs& outputs) {
                       run(encoder, batch, outputs, batch_size, num_threads);
                     });
}

FloatArray token_embeddings(const Encoder& encoder, const IntArray& ids, const IntArray& cu_seqlens,
                            int64_t batch_size, int num_threads, const TokenTypes& token_types) {
  return encode_tokens(encoder.description().hidden_size, OwnedBatch(ids, cu_seqlens, token_types),
                       [&](const Batch& batch, const Outputs& outputs) {
                         run(encoder, batch, outputs, batch_size, num_threads);
                       });
}

FloatArray hidden_states(const Encoder& encoder, const IntArray& ids, const IntArray& cu_seqlens,
                         int num_threads, const TokenTypes& token_types) {
  const OwnedBatch owned(ids, cu_seqlens, token_types);
  const Batch batch = owned.view();
  FloatArray result({static_cast<py::ssize_t>(encoder.description().num_hidden_layers + 1),
                     static_cast<py::ssize_t>(batch.total_tokens),
                     static_cast<py::ssize_t>(encoder.description().hidden_size)});
  Outputs outputs;
  outputs.hidden_states = result.mutable_data();
  run(encoder, batch, outputs, INT64_MAX, num_threads);
  return result;
}

FloatArray matrix_inputs(const Encoder& encoder, const IntArray& ids, const IntArray& cu_seqlens,
                         int num_threads, const TokenTypes& token_types) {
  const OwnedBatch owned(ids, cu_seqlens, token_types);
  const Batch batch = owned.view();
  const ModelDescription& description = encoder.description();
  FloatArray result({static_cast<py::ssize_t>(description.num_hidden_layers),
                     static_cast<py::ssize_t>(batch.total_tokens),
                     static_cast<py::ssize_t>(inputs_per_layer(description))});
  Outputs outputs;
  outputs.matrix_inputs = result.mutable_data();
  run(encoder, batch, outputs, INT64_MAX, num_threads);
  return result;
}

void set_quantized_weight(Encoder& encoder, const std::string& name, const CodeArray& codes,
                          const FloatArray& scale, const FloatArray& input_scale) {
  check(codes.ndim() == 2, "weights: the codes of '", name, "' have ", codes.ndim(),
        " dimensions, wanted 2");
  const int64_t N = codes.shape(0), K = codes.shape(1);
  check(scale.ndim() == 2 && scale.shape(0) == int8_groups(K) && scale.shape(1) == N,
        "weights: the scales of '", name, "' are misshapen, wanted [", int8_groups(K), ", ", N,
        "]");
  check(input_scale.ndim() == 1 && input_scale.size() == K, "weights: the input scales of '", name,
        "' are misshapen, wanted [", K, "]");
  encoder.weights().set_quantized(name, codes.data(), {N, K}, scale.data(), input_scale.data());
}

// Stage -> its share of the encoder's time, all threads together.
std::map<std::string, double> profile(const Encoder& encoder, const IntArray& ids,
                                      const IntArray& cu_seqlens, int64_t batch_size,
                                      int num_threads) {
  const OwnedBatch owned(ids, cu_seqlens);
  const Batch batch = owned.view();
  const size_t width = static_cast<size_t>(encoder.description().hidden_size);
  std::vector<float> pooled(static_cast<size_t>(batch.batch) * width);
  StageTicks ticks{};
  Outputs outputs;
  outputs.pooled = pooled.data();
  outputs.poolings = {Pooling::kMean};
  outputs.ticks = &ticks;
  run(encoder, batch, outputs, batch_size, num_threads);
  std::map<std::string, double> shares = {{"embedding", ticks.embedding},
                                          {"matrices", ticks.matrices},
                                          {"quantization", ticks.quantization},
                                          {"activation", ticks.activation},
                                          {"attention", ticks.attention},
                                          {"layer_norm", ticks.layer_norm},
                                          {"pooling", ticks.pooling}};
  double total = 0;
  for (const auto& [stage, count] : shares) total += count;
  if (total > 0)
    for (auto& [stage, count] : shares) count /= total;
  return shares;
}

// The schedule of sentences of these lengths and every other that was considered:
// (chunk_tokens, num_chunks, num_shared_chunks, cost) each, the chosen one first.
std::vector<std::tuple<int64_t, int64_t, int64_t, double>> plan(const Encoder& encoder,
                                                                const IntArray& cu_seqlens,
                                                                int64_t batch_size,
                                                                int num_threads) {
  const std::vector<int32_t> offsets = copy_vector("cu_seqlens", cu_seqlens);
  check(!offsets.empty(), "cu_seqlens is empty, wanted at least one element");
  const Batch batch{nullptr, offsets.data(), static_cast<int64_t>(offsets.size()) - 1, 0};
  std::vector<Schedule> all;
  Schedule best = encoder.plan(batch, batch_size, num_threads, &all);
  all.insert(all.begin(), std::move(best));
  std::vector<std::tuple<int64_t, int64_t, int64_t, double>> rows;
  for (const Schedule& s : all)
    rows.emplace_back(s.chunk_tokens, s.num_chunks, s.num_shared_chunks, s.cost);
  return rows;
}

}  // namespace

void register_encoder(py::module_& module) {
  py::class_<Encoder>(module, "Encoder")
      .def("__init__", constructor(+[](const py::object& description, const std::string& dtype) {
             return std::make_unique<Encoder>(description_of(description), active_isa(),
                                              parse_weight_type(dtype));
           }),
           py::detail::is_new_style_constructor(), py::arg("description"), py::arg("dtype"))
      .def_property_readonly(
          "isa", [](const Encoder& e) { return std::string(e.linear_kernels().format.isa); })
      .def_property_readonly("hidden_size",
                             [](const Encoder& e) { return e.description().hidden_size; })
      .def("layer_matrices",
           [](const Encoder& e) {
             std::vector<std::tuple<std::string, std::vector<std::string>, int64_t>> rows;
             for (const LayerMatrix& one : layer_matrices(e.description())) {
               std::vector<std::string> parts;
               for (const LayerMatrix::Part& part : one.parts) parts.emplace_back(part.name);
               rows.emplace_back(one.name, std::move(parts), one.K);
             }
             return rows;
           })
      .def("weight_slots", [](Encoder& e) { return e.weights().shapes(); })
      .def("set_weight", &set_weight<Encoder>, py::arg("name"), py::arg("array").noconvert())
      .def("set_weight_rows", &set_weight_rows<Encoder>, py::arg("name"),
           py::arg("rows").noconvert(), py::arg("first_row"))
      .def("set_quantized_weight", &set_quantized_weight, py::arg("name"),
           py::arg("codes").noconvert(), py::arg("scale").noconvert(),
           py::arg("input_scale").noconvert())
      .def("finish_weights", [](Encoder& e) { e.weights().finish(); })
      .def("encode", &encode, py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::kw_only(), py::arg("poolings"), py::arg("pool_from"), py::arg("batch_size"),
           py::arg("num_threads"), py::arg("token_types").noconvert() = py::none())
      .def("encode_with_tokens", &encode_with_tokens, py::arg("ids").noconvert(),
           py::arg("cu_seqlens").noconvert(), py::kw_only(), py::arg("poolings"),
           py::arg("pool_from"), py::arg("batch_size"), py::arg("num_threads"),
           py::arg("token_types").noconvert() = py::none())
      .def("token_embeddings", &token_embeddings, py::arg("ids").noconvert(),
           py::arg("cu_seqlens").noconvert(), py::kw_only(), py::arg("batch_size"),
           py::arg("num_threads"), py::arg("token_types").noconvert() = py::none())
      .def("hidden_states", &hidden_states, py::arg("ids").noconvert(),
           py::arg("cu_seqlens").noconvert(), py::kw_only(), py::arg("num_threads"),
           py::arg("token_types").noconvert() = py::none())
      .def("profile", &profile, py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(),
           py::kw_only(), py::arg("batch_size"), py::arg("num_threads"))
      .def("plan", &plan, py::arg("cu_seqlens").noconvert(), py::kw_only(), py::arg("batch_size"),
           py::arg("num_threads"))
      .def("matrix_inputs", &matrix_inputs, py::arg("ids").noconvert(),
           py::arg("cu_seqlens").noconvert(), py::kw_only(), py::arg("num_threads"),
           py::arg("token_types").noconvert() = py::none());
}

}  // namespace minifuse
