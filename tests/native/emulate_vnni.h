// vpdpbusd and vpdpwssd on a CPU without VNNI: a handler of SIGILL that carries them out on the
// registers of the signal frame. The avx2_vnni kernels, which need nothing else beyond AVX2, so run
// from beginning to end on any AVX2 machine, and the avx512_vnni ones on any with AVX-512. Slow:
// about a microsecond an instruction.
#pragma once

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace minifuse::test {

inline int64_t num_emulated = 0;

// Offset of a state component in XSAVE's standard format (Intel SDM volume 1, 13.4).
inline int offset_of_component(unsigned index) {
  unsigned a, offset = 0, c, d;
  __get_cpuid_count(0xD, index, &a, &offset, &c, &d);
  return static_cast<int>(offset);
}

// The bytes of vector register i in a signal frame, sixteen at a time.
inline uint8_t* register_bytes(const ucontext_t& context, int i, int sixteen) {
  static const int ymm_high = offset_of_component(2), zmm_high = offset_of_component(6),
                   high_zmm = offset_of_component(7);
  uint8_t* area = reinterpret_cast<uint8_t*>(context.uc_mcontext.fpregs);
  if (i >= 16) return area + high_zmm + 64 * (i - 16) + 16 * sixteen;
  if (sixteen == 0) return area + 160 + 16 * i;
  return sixteen == 1 ? area + ymm_high + 16 * i : area + zmm_high + 32 * i + 16 * (sixteen - 2);
}

// The product of four bytes, or of two words, with as many weights.
inline int32_t product(bool is_words, const uint8_t* values, const uint8_t* weights) {
  int32_t sum = 0;
  if (is_words) {
    int16_t x[2], w[2];
    std::memcpy(x, values, 4);
    std::memcpy(w, weights, 4);
    sum = x[0] * w[0] + x[1] * w[1];
  } else {
    for (int i = 0; i < 4; ++i) sum += values[i] * static_cast<int8_t>(weights[i]);
  }
  return sum;
}

// Between registers, without a mask (SDM volume 2, 2.3 and 2.7): VEX.256.66.0F38.W0 50 /r (vpdpbusd)
// or 52 /r (vpdpwssd), which begin with C4, or the same of EVEX.512, with 62; the bits of register
// numbers are inverted in the prefixes. Anything else is a real fault.
inline void emulate_vnni(int, siginfo_t*, void* frame) {
  ucontext_t& context = *static_cast<ucontext_t*>(frame);
  auto& pc = context.uc_mcontext.gregs[REG_RIP];
  const uint8_t* code = reinterpret_cast<const uint8_t*>(pc);
  const bool is_vex = code[0] == 0xC4 && (code[1] & 0x1F) == 2 && (code[2] & 0x87) == 0x05;
  const bool is_evex = code[0] == 0x62 && (code[1] & 0x0F) == 2 && (code[2] & 0x87) == 0x05 &&
                       (code[3] & 0xF7) == 0x40;
  const uint8_t* opcode = code + (is_vex ? 3 : 4);
  const bool is_words = opcode[0] == 0x52;
  if (!(is_vex || is_evex) || !(opcode[0] == 0x50 || is_words) || opcode[1] < 0xC0) std::abort();
  const auto inverted = [](uint8_t byte, int bit, int value) {
    return byte >> bit & 1 ? 0 : value;
  };
  int destination = (opcode[1] >> 3 & 7) + inverted(code[1], 7, 8);
  int weights = (opcode[1] & 7) + inverted(code[1], 5, 8);
  int codes = ~code[2] >> 3 & 15;
  if (is_evex) {
    destination += inverted(code[1], 4, 16);
    weights += inverted(code[1], 6, 16);
    codes += inverted(code[3], 3, 16);
  }
  for (int sixteen = 0; sixteen < (is_vex ? 2 : 4); ++sixteen) {
    const uint8_t* a = register_bytes(context, codes, sixteen);
    const uint8_t* w = register_bytes(context, weights, sixteen);
    uint8_t* sums = register_bytes(context, destination, sixteen);
    for (int lane = 0; lane < 4; ++lane) {
      int32_t sum;
      std::memcpy(&sum, sums + 4 * lane, 4);
      sum += product(is_words, a + 4 * lane, w + 4 * lane);
      std::memcpy(sums + 4 * lane, &sum, 4);
    }
  }
  // XSTATE_BV: the upper parts are in use now, if they were not.
  reinterpret_cast<uint8_t*>(context.uc_mcontext.fpregs)[512] |= is_vex ? 0x04 : 0xE4;
  pc += opcode + 2 - code;
  ++num_emulated;
}

inline void install_vnni() {
  struct sigaction action = {};
  action.sa_sigaction = emulate_vnni;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGILL, &action, nullptr);
}

}  // namespace minifuse::test
#endif
