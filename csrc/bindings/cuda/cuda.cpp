// The module minifuse._cuda: the encoder on a CUDA device, by the methods of _core.Encoder, and the
// ops (cuda_ops.cpp). It is loaded only where somebody asks for a device.

#include <limits>

#include "bindings/description.h"
#include "bindings/encode.h"
#include "cuda/runtime.h"
#include "model/cuda/cuda_encoder.h"

namespace minifuse {
namespace {

void run(CudaEncoder& encoder, const Batch& batch, const Outputs& outputs) {
  compute([&](const ShouldStop& should_stop) {
    encoder.encode(batch, outputs, std::numeric_limits<int64_t>::max(), should_stop);
  });
}

py::list devices() {
  py::list rows;
  for (const cuda::DeviceInfo& device : cuda::list_devices()) {
    py::dict row;
    row["name"] = device.name;
    row["compute_capability"] = py::make_tuple(device.major, device.minor);
    row["memory_bytes"] = device.memory_bytes;
    rows.append(row);
  }
  return rows;
}

}  // namespace

// The tests build it on the emulator beside the real one, by another name.
#ifndef MINIFUSE_CUDA_MODULE
#define MINIFUSE_CUDA_MODULE _cuda
#endif

PYBIND11_MODULE(MINIFUSE_CUDA_MODULE, module) {
  prepare_process();
  module.def("devices", &devices);
  register_cuda_ops(module);
  py::class_<CudaEncoder>(module, "Encoder", py::module_local())
      .def("__init__",
           constructor(+[](const py::object& description, const std::string& dtype, int device) {
             return std::make_unique<CudaEncoder>(description_of(description),
                                                  cuda::open_device(device), dtype);
           }),
           py::detail::is_new_style_constructor(), py::arg("description"), py::arg("dtype"),
           py::arg("device"))
      .def_property_readonly("isa",
                             [](const CudaEncoder& e) { return std::string(e.kernels().isa); })
      .def_property_readonly("device_name",
                             [](const CudaEncoder& e) { return e.runtime().device_name(); })
      .def_property_readonly("hidden_size",
                             [](const CudaEncoder& e) { return e.description().hidden_size; })
      .def("weight_slots", [](CudaEncoder& e) { return e.weights().shapes(); })
      .def("set_weight", &set_weight<CudaEncoder>, py::arg("name"), py::arg("array").noconvert())
      .def("set_weight_rows", &set_weight_rows<CudaEncoder>, py::arg("name"),
           py::arg("rows").noconvert(), py::arg("first_row"))
      .def("finish_weights", &CudaEncoder::finish_weights)
      .def(
          "encode",
          [](CudaEncoder& e, const IntArray& ids, const IntArray& cu_seqlens,
             const std::vector<std::string>& poolings, int64_t pool_from,
             const TokenTypes& token_types) {
            return encode_pooled(e.description().hidden_size,
                                 OwnedBatch(ids, cu_seqlens, token_types), poolings, pool_from,
                                 [&](const Batch& b, const Outputs& o) { run(e, b, o); });
          },
          py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(), py::kw_only(),
          py::arg("poolings"), py::arg("pool_from"),
          py::arg("token_types").noconvert() = py::none())
      .def(
          "encode_with_tokens",
          [](CudaEncoder& e, const IntArray& ids, const IntArray& cu_seqlens,
             const std::vector<std::string>& poolings, int64_t pool_from,
             const TokenTypes& token_types) {
            return encode_both(e.description().hidden_size,
                               OwnedBatch(ids, cu_seqlens, token_types), poolings, pool_from,
                               [&](const Batch& b, const Outputs& o) { run(e, b, o); });
          },
          py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(), py::kw_only(),
          py::arg("poolings"), py::arg("pool_from"),
          py::arg("token_types").noconvert() = py::none())
      .def(
          "encode_into",
          [](CudaEncoder& e, const IntArray& ids, const IntArray& cu_seqlens, uintptr_t address,
             const std::vector<std::string>& poolings, int64_t pool_from,
             const TokenTypes& token_types) {
            const OwnedBatch owned(ids, cu_seqlens, token_types);
            const Batch batch = owned.view();
            Outputs outputs = pooled_outputs(poolings, pool_from);
            outputs.pooled = reinterpret_cast<float*>(address);
            outputs.is_on_device = true;
            run(e, batch, outputs);
          },
          py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(), py::arg("address"),
          py::kw_only(), py::arg("poolings"), py::arg("pool_from"),
          py::arg("token_types").noconvert() = py::none())
      .def(
          "token_embeddings",
          [](CudaEncoder& e, const IntArray& ids, const IntArray& cu_seqlens,
             const TokenTypes& token_types) {
            return encode_tokens(e.description().hidden_size,
                                 OwnedBatch(ids, cu_seqlens, token_types),
                                 [&](const Batch& b, const Outputs& o) { run(e, b, o); });
          },
          py::arg("ids").noconvert(), py::arg("cu_seqlens").noconvert(), py::kw_only(),
          py::arg("token_types").noconvert() = py::none());
}

}  // namespace minifuse
