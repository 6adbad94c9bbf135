// The encoder on a CUDA device: the same model, packed sentences and poolings as encoder.h, through
// the kernel table of a runtime. One order of summation per op and element type: a sentence's bits
// depend on nothing around it.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "common/fork_safe.h"
#include "cuda/runtime.h"
#include "model/batch.h"
#include "model/cuda/cuda_weights.h"
#include "model/weights/weights.h"
#include "threads/should_stop.h"

namespace minifuse {

class CudaEncoder {
 public:
  // element: "float32", "bfloat16" or "float16". Throws std::invalid_argument where the device's
  // kernels do not take the model's shape.
  CudaEncoder(const ModelDescription& description, std::shared_ptr<cuda::Runtime> runtime,
              const std::string& element);
  ~CudaEncoder();

  // Filled by name on the host, as Encoder's; finish_weights() sends them to the device.
  Weights& weights() { return *weights_; }
  void finish_weights();

  const ModelDescription& description() const { return description_; }
  const cuda::Kernels& kernels() const { return kernels_; }
  const cuda::Runtime& runtime() const { return *runtime_; }

  // As Encoder::encode, for outputs.pooled, in the host's memory or the device's, and
  // outputs.token_embeddings in the host's. All is done on return. At most max_sentences go in a
  // pass. Safe from several threads, one at a time.
  bool encode(const Batch& batch, const Outputs& outputs, int64_t max_sentences,
              const ShouldStop& should_stop);

 private:
  struct Pass;  // what one pass of sentences through the model needs, on a stream of its own
  struct Steps;  // of a layer
  struct Chunk {
    int64_t first, last;  // sentences
  };

  bool encode_chunks(const Batch& batch, const Outputs& outputs, int64_t max_sentences,
                     const ShouldStop& should_stop);
  int64_t rows_of_hidden(int64_t tokens) const;
  std::vector<Chunk> chunks_of(const Batch& batch, int64_t max_sentences, int64_t max_tokens) const;
  void make_room(int64_t tokens, int64_t sentences, size_t num_poolings);
  void start(Pass& pass, const Batch& batch, const Outputs& outputs, const Chunk& chunk);
  void launch_graph(Pass& pass, const Outputs& outputs, int M, int num_sentences, int num_tiles);
  void enqueue(Pass& pass, const Outputs& outputs, int M, int num_sentences, int num_tiles);
  void finish(Pass& pass, const Batch& batch, const Outputs& outputs);

  ModelDescription description_;
  std::shared_ptr<cuda::Runtime> runtime_;
  const cuda::Kernels& kernels_;
  const MatrixFormat rows_;  // how weights lie on the device
  std::unique_ptr<Weights> weights_;  // of the host, until finish_weights()
  std::unique_ptr<const CudaWeights> on_device_;  // from then on
  std::array<std::unique_ptr<Pass>, 2> passes_;  // one computes while the other is filled
  std::mutex mutex_;
  std::atomic<std::thread::id> owner_;  // the thread that holds the mutex
  const uint64_t process_ = fork_generation();
};

}  // namespace minifuse
