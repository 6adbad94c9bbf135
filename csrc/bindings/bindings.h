// What the binding files share. pybind11 is seen in this folder only.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <chrono>
#include <functional>
#include <string>

#include "common/check.h"
#include "cpu/dispatch.h"
#include "encoder/batch.h"
#include "encoder/schedule.h"

namespace minifuse {

namespace py = pybind11;

// C-contiguous arrays of exactly this dtype; python/minifuse/native.py makes them so.
using FloatArray = py::array_t<float, py::array::c_style>;
using IntArray = py::array_t<int32_t, py::array::c_style>;
using CodeArray = py::array_t<int8_t, py::array::c_style>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// The instruction set that the operations and new encoders use; select_isa() changes it.
const InstructionSet& active_isa();

Activation parse_activation(const std::string& name);
WeightType parse_weight_type(const std::string& name);
Pooling parse_pooling(const std::string& name);
// The arrays' own memory: it lives as long as they do.
Batch borrow_batch(const IntArray& ids, const IntArray& cu_seqlens);

// Asks Python about pending signals (Ctrl-C) at most every 50 ms; true where one wants to raise. To
// be called without the GIL; the exception stays set for raise_if_signalled().
class SignalPoller {
 public:
  bool operator()() {
    const auto now = std::chrono::steady_clock::now();
    if (raised_ || now - last_ < std::chrono::milliseconds(50)) return raised_;
    const py::gil_scoped_acquire gil;
    raised_ = PyErr_CheckSignals() != 0;
    last_ = std::chrono::steady_clock::now();
    return raised_;
  }

  void raise_if_signalled() const {
    if (raised_) throw py::error_already_set();
  }

 private:
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool raised_ = false;
};

void register_encoder(py::module_& module);
void register_row_ops(py::module_& module);
void register_sentence_ops(py::module_& module);
void register_hardware(py::module_& module);
void register_search(py::module_& module);
void register_training(py::module_& module);
void register_cuda_ops(py::module_& module);  // of _cuda

}  // namespace minifuse
