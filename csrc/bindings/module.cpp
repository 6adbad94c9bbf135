// The native module minifuse._core: lists what the other files register.

#include "bindings/bindings.h"
#include "bindings/share.h"

PYBIND11_MODULE(_core, module) {
  module.doc() =
      "Fused kernels and the BERT encoder of minifuse. Use the minifuse package instead.";
  minifuse::prepare_process();
  minifuse::ThreadPool::get();  // without a thread yet
  minifuse::ThreadPool::most_threads();
  minifuse::threads_for(0, 1);
  minifuse::register_hardware(module);
  minifuse::register_row_ops(module);
  minifuse::register_sentence_ops(module);
  minifuse::register_encoder(module);
  minifuse::register_search(module);
  minifuse::register_sparse(module);
  minifuse::register_tokenizer(module);
  minifuse::register_training(module);
}
