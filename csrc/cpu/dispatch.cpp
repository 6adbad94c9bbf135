// The best-first table of instruction sets and the CPU tests behind it. A test asks for every
// feature that its file is compiled with, and for the operating system's consent (XGETBV): a CPU
// may have AVX-512 while the system does not save its registers.

#include "cpu/dispatch.h"

#include <cstdlib>

#include "common/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace minifuse {

namespace isa_scalar {
extern const Kernels kKernels;
}
#if defined(__x86_64__)
namespace isa_avx2 {
extern const Kernels kKernels;
}
namespace isa_avx512 {
extern const Kernels kKernels;
}
namespace isa_avx2_vnni {
extern const Int8Kernels kInt8;
}
namespace isa_avx512_vnni {
extern const Int8Kernels kInt8;
}
namespace isa_avx512_bf16 {
extern const Bfloat16Kernels kBfloat16;
}
#endif

namespace {

struct Feature {
  const char* name;
  bool present;
};

#if defined(__x86_64__)
uint64_t enabled_state() {
  uint32_t low, high;
  __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (static_cast<uint64_t>(high) << 32) | low;
}

std::vector<Feature> read_features() {
  uint32_t a, b, c1, d, b7, c7, a71;
  bool avx_state = false, avx512_state = false;
  if (!__get_cpuid(1, &a, &b, &c1, &d)) return {};
  if (c1 & (1u << 27)) {  // OSXSAVE: xgetbv may be executed
    const uint64_t state = enabled_state();
    avx_state = (state & 0x06) == 0x06;     // XMM and YMM
    avx512_state = (state & 0xE6) == 0xE6;  // and opmask, upper ZMM, high ZMM
  }
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d)) b7 = c7 = 0;
  if (!__get_cpuid_count(7, 1, &a71, &b, &a, &d)) a71 = 0;
  const auto bit = [](uint32_t word, int index) { return ((word >> index) & 1) != 0; };
  return {
      {"fma", avx_state && bit(c1, 12)},
      {"avx2", avx_state && bit(c1, 28) && bit(b7, 5)},
      {"avx_vnni", avx_state && bit(a71, 4)},
      {"avx512f", avx512_state && bit(b7, 16)},
      {"avx512dq", avx512_state && bit(b7, 17)},
      {"avx512bw", avx512_state && bit(b7, 30)},
      {"avx512vl", avx512_state && bit(b7, 31)},
      {"avx512_vnni", avx512_state && bit(c7, 11)},
      {"avx512_bf16", avx512_state && bit(a71, 5)},
  };
}
#else
std::vector<Feature> read_features() { return {}; }
#endif

const std::vector<Feature>& features() {
  // Leaked, as the table of instruction sets is: daemon threads may compute while the process exits.
  static const auto& all = *new std::vector<Feature>(read_features());
  return all;
}

[[maybe_unused]] bool has(std::initializer_list<const char*> names) {
  for (const char* name : names) {
    bool found = false;
    for (const Feature& feature : features())
      found = found || (std::string(feature.name) == name && feature.present);
    if (!found) return false;
  }
  return true;
}

// On a Sapphire Rapids the ceiling of vdpbf16ps is half that of float32's multiply-adds, and weights
// that are widened are 1.8 times as fast. That is taken to hold for all of Intel's cores.
bool has_slow_bfloat16() {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  return __get_cpuid(0, &a, &b, &c, &d) && b == signature_INTEL_ebx && d == signature_INTEL_edx;
#else
  return false;
#endif
}

[[maybe_unused]] bool has_avx512() {
  return has({"avx512f", "avx512vl", "avx512bw", "avx512dq", "avx2", "fma"});
}

std::string supported_names() {
  std::string names;
  for (const InstructionSet& isa : instruction_sets())
    if (isa.is_supported()) names += (names.empty() ? "" : ", ") + std::string(isa.name);
  return names;
}

}  // namespace

const LinearKernels& InstructionSet::linear(WeightType type) const {
  switch (type) {
    case WeightType::kBfloat16:
      return bfloat16 ? bfloat16->linear : kernels->bfloat16;
    case WeightType::kInt8:
      return int8 ? int8->linear : kernels->int8;
    default:
      return kernels->float32;
  }
}

void (*InstructionSet::attention(WeightType type) const)(const AttentionParams& params) {
  return type == WeightType::kBfloat16 && bfloat16 ? bfloat16->attention : kernels->attention;
}

void (*InstructionSet::search(WeightType type) const)(const SearchParams& params) {
  switch (type) {
    case WeightType::kBfloat16:
      return kernels->search_bfloat16;
    case WeightType::kInt8:
      return int8 ? int8->search : kernels->search_int8;
    default:
      return kernels->search_float32;
  }
}

const std::vector<InstructionSet>& instruction_sets() {
  static const auto& table = *new std::vector<InstructionSet> {
#if defined(__x86_64__)
    {"avx512_bf16",
     "avx512_bf16 avx512_vnni avx512f avx512vl avx512bw avx512dq avx2 fma",
     [] { return has({"avx512_bf16", "avx512_vnni"}) && has_avx512(); },
     &isa_avx512::kKernels,
     &isa_avx512_vnni::kInt8,
     &isa_avx512_bf16::kBfloat16},
        {"avx512_vnni", "avx512_vnni avx512f avx512vl avx512bw avx512dq avx2 fma",
         [] { return has({"avx512_vnni"}) && has_avx512(); }, &isa_avx512::kKernels,
         &isa_avx512_vnni::kInt8},
        {"avx512", "avx512f avx512vl avx512bw avx512dq avx2 fma", [] { return has_avx512(); },
         &isa_avx512::kKernels},
#if defined(MINIFUSE_EVEX_VNNI)
        {"avx2_vnni", "avx512_vnni avx512vl avx2 fma",
         [] { return has({"avx512_vnni", "avx512vl", "avx2", "fma"}); },
#else
        {"avx2_vnni", "avx_vnni avx2 fma", [] { return has({"avx_vnni", "avx2", "fma"}); },
#endif
         &isa_avx2::kKernels, &isa_avx2_vnni::kInt8},
        {"avx2", "avx2 fma", [] { return has({"avx2", "fma"}); }, &isa_avx2::kKernels},
#endif
        {"scalar", "", [] { return true; }, &isa_scalar::kKernels},
  };
  return table;
}

const InstructionSet& select_isa(const std::string& name) {
  std::string wanted = name;
  const char* variable = std::getenv("MINIFUSE_ISA");
  const bool from_environment = wanted.empty() && variable != nullptr && *variable != '\0';
  if (from_environment) wanted = variable;
  for (const InstructionSet& isa : instruction_sets()) {
    if (wanted.empty() ? isa.is_supported() && !(isa.bfloat16 && has_slow_bfloat16())
                       : wanted == isa.name) {
      check(isa.is_supported(), from_environment ? "MINIFUSE_ISA" : "isa", "=", wanted,
            ": this CPU lacks it (it needs ", isa.requires_text,
            "); supported here: ", supported_names());
      return isa;
    }
  }
  fail(from_environment ? "MINIFUSE_ISA" : "isa", "=", wanted,
       " is not known; supported here: ", supported_names());
}

std::vector<std::string> cpu_features() {
  std::vector<std::string> names;
  for (const Feature& feature : features())
    if (feature.present) names.emplace_back(feature.name);
  return names;
}

}  // namespace minifuse
