// The encoder over packed sentences, from token ids to pooled vectors.
#pragma once

#include <memory>
#include <vector>

#include "cpu/dispatch.h"
#include "model/batch.h"
#include "model/description.h"
#include "model/plan.h"
#include "model/team_steps.h"
#include "model/weights/weights.h"
#include "model/workspace.h"
#include "threads/machine.h"
#include "threads/should_stop.h"

namespace minifuse {

class Encoder {
 public:
  // The size of a core's L2 cache chooses how many rows go through a layer together; it changes no
  // bit of a result.
  Encoder(const ModelDescription& description, const InstructionSet& isa, WeightType weight_type,
          int64_t l2_bytes = l2_cache_bytes());
  ~Encoder();

  Weights& weights() { return weights_; }
  const ModelDescription& description() const { return description_; }
  // Returns the cost model of this encoder and its weights.
  CostModel cost_model() const;
  // The plan of a call, and every other that was considered where they are asked for.
  Schedule plan(const Batch& batch, int64_t max_sentences, int num_threads,
                std::vector<Schedule>* considered = nullptr) const;
  // Returns the kernels that multiply its matrices.
  const LinearKernels& linear_kernels() const { return kernels_.linear; }

  // Throws std::invalid_argument where the batch is not well formed or the weights are not complete.
  // Returns false where should_stop, asked now and then on the calling thread, said true; it must
  // not throw. Safe from several threads, and from should_stop itself (a signal's handler).
  bool encode(const Batch& batch, const Outputs& outputs, int64_t max_sentences, int num_threads,
              const ShouldStop& should_stop) const;

 private:
  struct Call;

  // Returns false where the call was told to stop: for every member of a team alike. noexcept: a
  // member that left between two barriers would leave the others waiting there for ever.
  bool encode_chunk(Call& call, const Chunk& chunk, Workspace& ws, Team& team) const noexcept;
  void add_ticks(const Outputs& outputs, Workspace& ws) const;
  // y = the norm of rows of embeddings that the first attention reads.
  void norm_first(const float* x, float* y, int64_t ldx, int64_t num_rows) const noexcept;
  // x: the last rows of the chunk, ldx apart.
  void pool_chunk(const Batch& batch, const Outputs& outputs, const Chunk& chunk, const float* x,
                  int64_t ldx, const Team& team) const;

  // Workspaces outlive a call, so that a burst of queries allocates nothing; large ones do not.
  std::unique_ptr<Workspace> borrow_workspace(int64_t tokens, int64_t max_seqlen,
                                              int64_t members) const;
  void return_workspace(std::unique_ptr<Workspace> workspace) const;

  ModelDescription description_;
  EncoderKernels kernels_;
  Weights weights_;
  mutable std::vector<std::unique_ptr<Workspace>> free_workspaces_;  // under fork_safe_mutex()
};

}  // namespace minifuse
