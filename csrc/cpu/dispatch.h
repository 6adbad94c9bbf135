// Chooses the instruction set: the best one that the CPU has and the operating system enables, or
// the one that MINIFUSE_ISA names. An unknown or unsupported name throws, with the list.
#pragma once

#include <string>
#include <vector>

#include "common/kernels.h"

namespace minifuse {

struct InstructionSet {
  const char* name;
  const char* features;  // what its file is compiled with, a space between two
  Kernels kernels;
  bool multiplies_pairs;  // of bfloat16: both operands are rounded to it

  // Returns whether the CPU has the features and the operating system saves their registers, of AMX
  // those of a process that select_isa() has asked for.
  bool is_supported() const;
  // The kernels for weights of this type. They are named after the instructions that they need, which
  // may be fewer than the set has.
  const LinearKernels& linear(WeightType type) const;
  // The attention of a model with weights of this type.
  void (*attention(WeightType type) const)(const AttentionParams& params);
  // The search among vectors of this type.
  void (*search(WeightType type) const)(const SearchParams& params);
};

// Best first.
const std::vector<InstructionSet>& instruction_sets();

// The one by that name, or, for an empty name, by MINIFUSE_ISA and then the best supported one.
const InstructionSet& select_isa(const std::string& name = "");

// The names of the CPU's features that matter here, as Linux spells them.
std::vector<std::string> cpu_features();

}  // namespace minifuse
