// What the machine is: instruction sets, threads, the measured arithmetic ceiling.

#include <algorithm>
#include <atomic>
#include <vector>

#include "bindings/bindings.h"

namespace minifuse {
namespace {

std::atomic<const InstructionSet*> selected{nullptr};

// Operations per second of num_threads threads together, each in its own register-only loop.
double measure_peak(const std::string& dtype, int num_threads, double seconds) {
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  check(seconds > 0 && seconds <= 60, "seconds is ", seconds, ", wanted > 0 and <= 60");
  const LinearKernels& kernels = active_isa().linear(parse_weight_type(dtype));
  std::vector<double> rate(static_cast<size_t>(num_threads), 0.0);
  const py::gil_scoped_release release;
  ThreadPool::get().run(num_threads, [&](int member, int) {
    using Clock = std::chrono::steady_clock;
    const auto elapsed = [](Clock::time_point since) {
      return std::chrono::duration<double>(Clock::now() - since).count();
    };
    const Clock::time_point start = Clock::now();
    alignas(64) float sink[16];
    std::fill(sink, sink + 16, 1e-9f);
    const int64_t iterations = 200000;
    std::vector<double> rates;
    while (elapsed(start) < seconds) {
      const Clock::time_point begin = Clock::now();
      const double flops = kernels.peak_loop(iterations, sink);
      rates.push_back(flops / elapsed(begin));
    }
    std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
    rate[static_cast<size_t>(member)] = rates[rates.size() / 2];
  });
  double total = 0;
  for (const double one : rate) total += one;
  return total;
}

}  // namespace

const InstructionSet& active_isa() {
  const InstructionSet* isa = selected.load();
  if (isa == nullptr) {
    isa = &select_isa();
    selected.store(isa);
  }
  return *isa;
}

void register_hardware(py::module_& module) {
  module.def("isa", [] { return std::string(active_isa().name); });
  module.def(
      "isa_of",
      [](const std::string& dtype) {
        return std::string(active_isa().linear(parse_weight_type(dtype)).isa);
      },
      py::arg("dtype"));
  module.def(
      "select_isa", [](const std::string& name) { selected.store(&select_isa(name)); },
      py::arg("name") = "");
  module.def("supported_isas", [] {
    std::vector<std::string> names;
    for (const InstructionSet& isa : instruction_sets())
      if (isa.is_supported()) names.emplace_back(isa.name);
    return names;
  });
  module.def("cpu_features", &cpu_features);
  module.def("default_num_threads", &default_num_threads);
  module.def("measure_peak", &measure_peak, py::arg("dtype"), py::arg("num_threads"),
             py::arg("seconds"));
  module.def("shutdown_threads", [] {
    const py::gil_scoped_release release;
    ThreadPool::get().shutdown();
  });
}

}  // namespace minifuse
