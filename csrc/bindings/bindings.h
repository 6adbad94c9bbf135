// Types and helpers that the binding files share. pybind11 is seen in this folder only.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <unistd.h>

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#if defined(__GLIBCXX__)
#include <cxxabi.h>
#endif

#include "common/check.h"
#include "cpu/dispatch.h"
#include "model/batch.h"
#include "threads/pool.h"
#include "threads/should_stop.h"

namespace minifuse {

namespace py = pybind11;

// C-contiguous arrays of exactly this dtype; python/minifuse/native/arrays.py makes them so.
using FloatArray = py::array_t<float, py::array::c_style>;
using IntArray = py::array_t<int32_t, py::array::c_style>;
using TokenTypes = std::optional<IntArray>;  // none: all are 0
using CodeArray = py::array_t<int8_t, py::array::c_style>;
using ByteArray = py::array_t<uint8_t, py::array::c_style>;

// The instruction set that the operations and new encoders use; select_isa() changes it.
const InstructionSet& active_isa();

Activation parse_activation(const std::string& name);
WeightType parse_weight_type(const std::string& name);
Pooling parse_pooling(const std::string& name);

inline std::vector<int64_t> shape_of(const py::array& array) {
  return {array.shape(), array.shape() + array.ndim()};
}

// A copy of int32 [n]: another thread may change an array after it was checked, and what was checked
// must be what is read. Throws where it has another number of dimensions.
std::vector<int32_t> copy_vector(const char* name, const IntArray& array);

// A batch whose token ids, offsets and token types are its own copies.
struct OwnedBatch {
  std::vector<int32_t> ids, cu_seqlens, token_types;

  OwnedBatch(const IntArray& ids, const IntArray& cu_seqlens,
             const TokenTypes& token_types = std::nullopt);
  Batch view() const {
    return {ids.data(), cu_seqlens.data(), static_cast<int64_t>(cu_seqlens.size()) - 1,
            static_cast<int64_t>(ids.size()), token_types.empty() ? nullptr : token_types.data()};
  }
};

// Releases the GIL for a scope. Until Python 3.13 a daemon thread that asks for the GIL while the
// interpreter shuts down is ended by pthread_exit, which unwinds the stack; a destructor such as
// py::gil_scoped_release's does not let that through and aborts the process. Such a thread is held
// here until the process has ended, as Python 3.14 does itself.
class ReleaseGil {
 public:
  ReleaseGil() : state_(PyEval_SaveThread()) {}
  ReleaseGil(const ReleaseGil&) = delete;
  ~ReleaseGil() {
#if defined(__GLIBCXX__)
    try {
      PyEval_RestoreThread(state_);
    } catch (abi::__forced_unwind&) {
      for (;;) pause();
    }
#else
    PyEval_RestoreThread(state_);
#endif
  }

 private:
  PyThreadState* state_;
};

// The thread on which Python handles signals; in the child of a fork, the one that forked.
unsigned long main_thread_ident();

// Called when a module is imported, with the GIL. Makes everything that is made once: the first call
// that needs it could otherwise be interrupted by a fork.
void prepare_process();

// Asks Python about pending signals (Ctrl-C) at most every 50 ms; true where one wants to raise.
// Made with the GIL, called without it; the exception stays set for raise_if_signalled(). Python
// handles signals on its main thread only, so any other thread never asks for the GIL here.
class SignalPoller {
 public:
  SignalPoller() : is_main_thread_(main_thread_ident() == PyThread_get_thread_ident()) {}

  bool operator()() {
    if (!is_main_thread_) return false;
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
  const bool is_main_thread_;
  std::chrono::steady_clock::time_point last_ = std::chrono::steady_clock::now();
  bool raised_ = false;
};

// work(should_stop) without the GIL; raises afterwards what a signal's handler raised meanwhile.
template <typename Work>
void compute(Work work) {
  SignalPoller poller;
  const ShouldStop should_stop = [&poller] { return poller(); };
  try {
    const ReleaseGil release;
    work(should_stop);
  } catch (const std::exception&) {
    poller.raise_if_signalled();  // what the user asked for goes before what failed meanwhile
    throw;
  }
  poller.raise_if_signalled();
}

void register_encoder(py::module_& module);
void register_row_ops(py::module_& module);
void register_sentence_ops(py::module_& module);
void register_hardware(py::module_& module);
void register_search(py::module_& module);
void register_sparse(py::module_& module);
void register_tokenizer(py::module_& module);
void register_training(py::module_& module);
void register_cuda_ops(py::module_& module);  // of _cuda

// A constructor for .def("__init__", constructor(...), py::detail::is_new_style_constructor(), ...).
// py::init does the same, but where memory ends in its last step, in which pybind11 makes the new
// object known, it deletes the object twice or ends the process (pybind11 3.1.0).
template <typename Class, typename... Args>
auto constructor(std::unique_ptr<Class> (*make)(Args...)) {
  return [make](py::detail::value_and_holder& instance, Args... args) {
    std::unique_ptr<Class> object = make(std::forward<Args>(args)...);
    instance.value_ptr() = object.get();
    try {
      instance.type->init_instance(instance.inst, &object);
    } catch (...) {
      instance.value_ptr() = nullptr;
      throw;
    }
  };
}

}  // namespace minifuse
