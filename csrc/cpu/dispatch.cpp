// The best-first list of instruction sets (sets_x86.def) and the CPU test behind it. The test asks for
// every feature that a set's file is compiled with, and for the operating system's consent (XGETBV):
// a CPU may have AVX-512 while the system does not save its registers. Linux saves those of AMX for
// processes that have asked for them, which is done when a set with them is chosen.

#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <string_view>

#include "common/check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace minifuse {

namespace {

// Returns the kernels of a set with those that another set replaces.
[[maybe_unused]] Kernels extended(Kernels kernels, const Extension& extension) {
  if (extension.bfloat16) kernels.bfloat16 = *extension.bfloat16;
  if (extension.attention_bfloat16) kernels.attention_bfloat16 = extension.attention_bfloat16;
  if (extension.int8) kernels.int8 = *extension.int8;
  if (extension.attention_int16) kernels.attention_int16 = extension.attention_int16;
  if (extension.search_int8) {
    kernels.search_int8 = extension.search_int8;
    kernels.search_int8_format = *extension.search_int8_format;
  }
  return kernels;
}

}  // namespace

// For each set kernels(), the whole table, and multiplies_pairs().
#define MINIFUSE_BASE(NAME, FEATURES)                \
  namespace isa_##NAME {                             \
    extern const Kernels kTable;                     \
    static Kernels kernels() { return kTable; }      \
    static bool multiplies_pairs() { return false; } \
  }
#define MINIFUSE_EXTENSION(NAME, EXTENDED, FEATURES)                                 \
  namespace isa_##NAME {                                                             \
    extern const Extension kTable;                                                   \
    static Kernels kernels() { return extended(isa_##EXTENDED::kernels(), kTable); } \
    static bool multiplies_pairs() {                                                 \
      return kTable.bfloat16 != nullptr || isa_##EXTENDED::multiplies_pairs();       \
    }                                                                                \
  }
MINIFUSE_BASE(scalar, "")
#if defined(__x86_64__)
#include "cpu/sets_x86.def"
#endif
#undef MINIFUSE_BASE
#undef MINIFUSE_EXTENSION

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

#if defined(__linux__)
constexpr int kTileData = 18;  // the component of the tile registers
#endif

// Returns whether the operating system saves the tile registers of processes that ask for it.
bool offers_tiles() {
#if defined(__linux__)
  constexpr int kGetOffered = 0x1021;  // ARCH_GET_XCOMP_SUPP
  uint64_t offered = 0;
  return syscall(SYS_arch_prctl, kGetOffered, &offered) == 0 && (offered >> kTileData & 1) != 0;
#else
  return false;
#endif
}

// Asks for them, for this process and those that it forks. From then on Linux refuses signal stacks
// that are too small for them, and while there is one it refuses this.
bool may_use_tiles() {
#if defined(__linux__)
  constexpr int kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

std::vector<Feature> read_features() {
  uint32_t a, b, c1, d, b7, c7, d7, a71;
  bool avx_state = false, avx512_state = false, tile_state = false;
  if (!__get_cpuid(1, &a, &b, &c1, &d)) return {};
  if (c1 & (1u << 27)) {  // OSXSAVE: xgetbv may be executed
    const uint64_t state = enabled_state();
    avx_state = (state & 0x06) == 0x06;  // XMM and YMM
    avx512_state = (state & 0xE6) == 0xE6;  // and opmask, upper ZMM, high ZMM
    tile_state = (state & 0x60000) == 0x60000;  // their configuration and data
  }
  if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) b7 = c7 = d7 = 0;
  if (!__get_cpuid_count(7, 1, &a71, &b, &a, &d)) a71 = 0;
  const auto bit = [](uint32_t word, int index) { return ((word >> index) & 1) != 0; };
  const bool has_tiles = bit(d7, 24) && tile_state && offers_tiles();
#if defined(MINIFUSE_EVEX_VNNI)  // its kernels are encoded for another feature (CMakeLists.txt)
  const bool has_avx_vnni = avx512_state && bit(c7, 11) && bit(b7, 31);
#else
  const bool has_avx_vnni = avx_state && bit(a71, 4);
#endif
  return {
      {"fma", avx_state && bit(c1, 12)},
      {"avx2", avx_state && bit(c1, 28) && bit(b7, 5)},
      {"avx_vnni", has_avx_vnni},
      {"avx512f", avx512_state && bit(b7, 16)},
      {"avx512dq", avx512_state && bit(b7, 17)},
      {"avx512bw", avx512_state && bit(b7, 30)},
      {"avx512vl", avx512_state && bit(b7, 31)},
      {"avx512_vnni", avx512_state && bit(c7, 11)},
      {"avx512_bf16", avx512_state && bit(a71, 5)},
      {"amx_tile", has_tiles},
      {"amx_int8", has_tiles && bit(d7, 25)},
      {"amx_bf16", has_tiles && bit(d7, 22)},
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

bool has(const std::string& name) {
  for (const Feature& feature : features())
    if (feature.name == name) return feature.present;
  check(features().empty(), "instruction sets: no test for the feature '", name, "'");
  return false;
}

// On a Sapphire Rapids the ceiling of vdpbf16ps is half that of float32's multiply-adds, and weights
// that are widened are 1.8 times as fast. That is taken to hold for all of Intel's cores.
bool is_slow_here(const InstructionSet& isa) {
#if defined(__x86_64__)
  uint32_t a, b, c, d;
  return std::string_view(isa.name) == "avx512_bf16" && __get_cpuid(0, &a, &b, &c, &d) &&
         b == signature_INTEL_ebx && d == signature_INTEL_edx;
#else
  static_cast<void>(isa);
  return false;
#endif
}

// Returns whether the operating system lets this process use the set's registers.
bool is_granted(const InstructionSet& isa) {
#if defined(__x86_64__)
  if (std::string_view(isa.features).find("amx_tile") != std::string_view::npos)
    return may_use_tiles();
#endif
  static_cast<void>(isa);
  return true;
}

std::string supported_names() {
  std::string names;
  for (const InstructionSet& isa : instruction_sets())
    if (isa.is_supported()) names += (names.empty() ? "" : ", ") + std::string(isa.name);
  return names;
}

}  // namespace

bool InstructionSet::is_supported() const {
  std::istringstream names(features);
  for (std::string name; names >> name;)
    if (!has(name)) return false;
  return true;
}

const LinearKernels& InstructionSet::linear(WeightType type) const {
  switch (type) {
    case WeightType::kBfloat16:
      return kernels.bfloat16;
    case WeightType::kInt8:
      return kernels.int8;
    default:
      return kernels.float32;
  }
}

void (*InstructionSet::attention(WeightType type) const)(const AttentionParams& params) {
  switch (type) {
    case WeightType::kBfloat16:
      return kernels.attention_bfloat16;
    case WeightType::kInt8:
      return kernels.attention_int16;
    default:
      return kernels.attention;
  }
}

void (*InstructionSet::search(WeightType type) const)(const SearchParams& params) {
  switch (type) {
    case WeightType::kBfloat16:
      return kernels.search_bfloat16;
    case WeightType::kInt8:
      return kernels.search_int8;
    default:
      return kernels.search_float32;
  }
}

const std::vector<InstructionSet>& instruction_sets() {
  static const auto& table = *[] {
    auto* sets = new std::vector<InstructionSet>{
#define MINIFUSE_BASE(NAME, FEATURES) \
  {#NAME, FEATURES, isa_##NAME::kernels(), isa_##NAME::multiplies_pairs()},
#define MINIFUSE_EXTENSION(NAME, EXTENDED, FEATURES) MINIFUSE_BASE(NAME, FEATURES)
        MINIFUSE_BASE(scalar, "")
#if defined(__x86_64__)
#include "cpu/sets_x86.def"
#endif
#undef MINIFUSE_BASE
#undef MINIFUSE_EXTENSION
    };
    std::reverse(sets->begin(), sets->end());
    return sets;
  }();
  return table;
}

const InstructionSet& select_isa(const std::string& name) {
  std::string wanted = name;
  const char* variable = std::getenv("MINIFUSE_ISA");
  const bool from_environment = wanted.empty() && variable != nullptr && *variable != '\0';
  if (from_environment) wanted = variable;
  for (const InstructionSet& isa : instruction_sets()) {
    if (wanted.empty() ? isa.is_supported() && !is_slow_here(isa) && is_granted(isa)
                       : wanted == isa.name) {
      check(isa.is_supported(), from_environment ? "MINIFUSE_ISA" : "isa", "=", wanted,
            ": this CPU lacks it (it needs ", isa.features,
            "); supported here: ", supported_names());
      check(is_granted(isa), from_environment ? "MINIFUSE_ISA" : "isa", "=", wanted,
            ": the operating system refuses its registers, as it does where a signal stack of this "
            "process is too small for them; supported here: ",
            supported_names());
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
