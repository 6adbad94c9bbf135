// The native module minifuse._core: lists what the other files register.

#include "bindings/bindings.h"

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "Fused kernels and the BERT encoder of minifuse. Use the minifuse package instead.";
  minifuse::register_hardware(module);
  minifuse::register_row_ops(module);
  minifuse::register_sentence_ops(module);
  minifuse::register_encoder(module);
  minifuse::register_search(module);
  minifuse::register_training(module);
}
