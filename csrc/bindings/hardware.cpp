// Describes the machine: instruction sets, threads, the measured arithmetic ceiling.

#include <algorithm>
#include <atomic>
#include <vector>

#include "bindings/bindings.h"
#include "linear/packed_linear.h"
#include "threads/items.h"

namespace minifuse {
namespace {

std::atomic<const InstructionSet*> selected{nullptr};

// Operations per second of num_threads threads together: each makes its own work() by make(), which
// takes some milliseconds and returns the operations done, and takes the median of its rates.
template <typename Make>
double measure_rate(int num_threads, double seconds, Make make) {
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  check(seconds > 0 && seconds <= 60, "seconds is ", seconds, ", wanted > 0 and <= 60");
  num_threads = std::min(num_threads, ThreadPool::most_threads());
  std::vector<double> rate(static_cast<size_t>(num_threads), 0.0);
  const auto measure = [&](int member, Items& measurements) {
    using Clock = std::chrono::steady_clock;
    const auto elapsed = [](Clock::time_point since) {
      return std::chrono::duration<double>(Clock::now() - since).count();
    };
    auto work = make();
    const Clock::time_point start = Clock::now();
    std::vector<double> rates;
    do {  // at least once, however short the time
      const Clock::time_point begin = Clock::now();
      const double operations = work();
      rates.push_back(operations / elapsed(begin));
    } while (elapsed(start) < seconds && !measurements.is_stopped(member));
    std::nth_element(rates.begin(), rates.begin() + rates.size() / 2, rates.end());
    rate[static_cast<size_t>(member)] = rates[rates.size() / 2];
  };
  compute([&](const ShouldStop& should_stop) {
    Items measurements(0, should_stop);  // no items to take: each thread makes its own
    measurements.run(num_threads, [&](int member) { measure(member, measurements); });
  });
  double total = 0;
  for (const double one : rate) total += one;
  return total;
}

// The arithmetic ceiling: multiply-adds that never leave the registers.
double measure_peak(const std::string& dtype, int num_threads, double seconds) {
  const LinearKernels& kernels = active_isa().linear(parse_weight_type(dtype));
  return measure_rate(num_threads, seconds, [&kernels] {
    return [&kernels] {
      alignas(64) float sink[16];
      std::fill(sink, sink + 16, 1e-9f);
      return kernels.peak_loop(200000, sink);
    };
  });
}

// One tile of a linear layer over and over, its rows of x and its panel of weights in L1: what the
// micro-kernel reaches where it never waits for memory.
double measure_tile(const std::string& dtype, int num_threads, double seconds) {
  const LinearKernels& kernels = active_isa().linear(parse_weight_type(dtype));
  const int64_t M = kernels.tile_rows, N = kernels.format.panel_columns;
  constexpr int64_t kL1Bytes = 28 * 1024, kStep = 64;
  int64_t K = kStep;
  while (kernels.format.panel_bytes(K + kStep) + M * (K + kStep) * 4 <= kL1Bytes) K += kStep;
  return measure_rate(num_threads, seconds, [&kernels, M, N, K] {
    PackedLinear weight(kernels.format, N, K);
    const std::vector<float> ones(static_cast<size_t>(N * K), 1.0f);
    weight.pack(ones.data(), K, 0, 1);
    const int64_t ldx = padded_stride(K);
    Buffer x(M * ldx), y(M * padded_stride(N));
    std::fill(x.data(), x.data() + x.size(), 1.0f);
    BufferOf<std::byte> scratch(kernels.scratch_bytes(M, K));
    return [&kernels, weight = std::move(weight), x = std::move(x), y = std::move(y),
            scratch = std::move(scratch), M, N, ldx]() mutable {
      const LinearParams params =
          weight.params(x.data(), ldx, y.data(), padded_stride(N), M, Activation::kNone);
      return kernels.tile_loop(with_scratch(params, scratch), 500);
    };
  });
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
        return std::string(active_isa().linear(parse_weight_type(dtype)).format.isa);
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
  module.def("measure_tile", &measure_tile, py::arg("dtype"), py::arg("num_threads"),
             py::arg("seconds"));
  module.def("shutdown_threads", [] {
    const ReleaseGil release;
    ThreadPool::get().shutdown();
  });
}

}  // namespace minifuse
