// The encoder as its equations. A thread takes a chunk of sentences through all layers alone (a team
// of one), or the threads of a team share a chunk: each takes a share of the output columns, rows
// or heads, and all meet at a barrier after every step. Either way each number is the same sum in
// the same order, and plan.cpp says which way is cheaper.

#include "model/encoder.h"

#include <algorithm>
#include <cstring>

#include "common/fork_safe.h"
#include "model/layer.h"
#include "threads/pool.h"

namespace minifuse {

struct Encoder::Call {
  const Batch& batch;
  const Outputs& outputs;
  StopRequest stop;
  std::atomic<int64_t> next_chunk{0};
};

Encoder::Encoder(const ModelDescription& description, const InstructionSet& isa,
                 WeightType weight_type, int64_t l2_bytes)
    : description_(description),
      kernels_{isa.kernels, isa.linear(weight_type), isa.attention(weight_type),
               block_sizes(l2_bytes)},
      weights_(description, kernels_.linear.format) {}

Encoder::~Encoder() = default;

bool Encoder::encode_chunk(Call& call, const Chunk& chunk, Workspace& ws,
                           Team& team) const noexcept {
  const Batch& batch = call.batch;
  const Outputs& outputs = call.outputs;
  const int64_t H = description_.hidden_size;
  const int64_t first_token = batch.cu_seqlens[chunk.first];
  const int64_t M = batch.cu_seqlens[chunk.last] - first_token;
  float* x = ws.x.data();
  const int64_t ldx = ws.sizes.ldx;

  // Rows of this member: X0 = LayerNorm(word[id] + position[i] + token_type[t]), the latter two in
  // one table.
  const int64_t row_begin = team.begin(M), row_end = team.end(M);
  for (int64_t sentence = chunk.first; sentence < chunk.last; ++sentence) {
    const int64_t begin = batch.cu_seqlens[sentence] - first_token;
    const int64_t end = batch.cu_seqlens[sentence + 1] - first_token;
    int64_t position = 0;
    for (int64_t row = begin; row < std::min(end, row_end); ++row) {
      const bool is_padding = batch.ids[first_token + row] == description_.padding_id;
      if (row >= row_begin)
        ws.positions[static_cast<size_t>(row)] = description_.position_row(
            batch.token_type(first_token + row), is_padding ? -1 : position);
      position += !is_padding;
    }
  }
  StageTicks* ticks = ws.ticks_of(team.member);
  const Observer clock(ticks, nullptr, 0);
  clock.time(&StageTicks::embedding, [&] {
    kernels_.rows.embed_layer_norm({.ids = batch.ids + first_token + row_begin,
                                    .positions = ws.positions.data() + row_begin,
                                    .word = weights_.word_embeddings.data(),
                                    .position = weights_.position_embeddings.data(),
                                    .gamma = weights_.embedding_gamma.data(),
                                    .beta = weights_.embedding_beta.data(),
                                    .eps = description_.layer_norm_eps,
                                    .y = x + row_begin * ldx,
                                    .ldy = ldx,
                                    .M = row_end - row_begin,
                                    .H = H});
  });
  // A model whose norms stand first has the norm of x in y, which is also what comes out at the end.
  const bool norms_stand_first = description_.norms != Norms::kPost;
  if (norms_stand_first)
    norm_first(x + row_begin * ldx, ws.y.data() + row_begin * ldx, ldx, row_end - row_begin);
  team.meet();

  const auto copy_rows = [&](float* destination, const float* from) {
    for (int64_t row = row_begin; row < row_end; ++row)
      std::memcpy(destination + (first_token + row) * H, from + row * ldx,
                  static_cast<size_t>(H) * sizeof(float));
  };
  const int64_t num_layers = description_.num_hidden_layers;
  for (int64_t index = 0; index < num_layers && !team.has_left(); ++index) {
    if (outputs.hidden_states) copy_rows(outputs.hidden_states + index * batch.total_tokens * H, x);
    const int64_t width = outputs.matrix_inputs ? inputs_per_layer(description_) : 0;
    const Observer observer(
        ticks,
        outputs.matrix_inputs && team.member == 0
            ? outputs.matrix_inputs + (index * batch.total_tokens + first_token) * width
            : nullptr,
        width);
    TeamSteps steps(weights_, index, kernels_, batch.cu_seqlens, chunk, ws, team, observer);
    const LayerWeights& layer = weights_.layers[static_cast<size_t>(index)];
    const NormWeights& next_norm =
        index + 1 < num_layers ? weights_.layers[static_cast<size_t>(index + 1)].attention_norm
                               : weights_.final_norm;
    switch (description_.norms) {
      case Norms::kPost:
        post_norm_layer(steps, layer);
        break;
      case Norms::kPre:
        pre_norm_layer(steps, layer, next_norm);
        break;
      case Norms::kSandwich:
        sandwich_norm_layer(steps, layer, next_norm);
        break;
    }
  }
  if (team.has_left()) return false;
  const float* last = norms_stand_first ? ws.y.data() : x;
  if (outputs.hidden_states)
    copy_rows(outputs.hidden_states + num_layers * batch.total_tokens * H, last);
  if (outputs.token_embeddings) copy_rows(outputs.token_embeddings, last);
  team.meet();
  if (team.has_left()) return false;
  clock.time(&StageTicks::pooling, [&] { pool_chunk(batch, outputs, chunk, last, ldx, team); });
  team.meet();
  return !team.has_left();
}

void Encoder::norm_first(const float* x, float* y, int64_t ldx, int64_t num_rows) const noexcept {
  const int64_t H = description_.hidden_size;
  if (description_.has_embedding_norm) {  // which is the norm of the first attention
    for (int64_t row = 0; row < num_rows; ++row)
      std::memcpy(y + row * ldx, x + row * ldx, static_cast<size_t>(H) * sizeof(float));
    return;
  }
  const NormWeights& norm = weights_.layers.front().attention_norm;
  kernels_.rows.layer_norm({.x = x,
                            .ldx = ldx,
                            .residual = nullptr,
                            .ldr = 0,
                            .gamma = norm.gamma.data(),
                            .beta = norm.beta.data(),
                            .eps = description_.layer_norm_eps,
                            .y = y,
                            .ldy = ldx,
                            .M = num_rows,
                            .H = H,
                            .is_rms = description_.has_rms_norms});
}

void Encoder::pool_chunk(const Batch& batch, const Outputs& outputs, const Chunk& chunk,
                         const float* x, int64_t ldx, const Team& team) const {
  if (outputs.pooled == nullptr) return;
  const int64_t H = description_.hidden_size;
  const int64_t first_token = batch.cu_seqlens[chunk.first];
  const int64_t num_sentences = chunk.last - chunk.first;
  const int64_t width = static_cast<int64_t>(outputs.poolings.size()) * H;
  for (int64_t i = team.begin(num_sentences); i < team.end(num_sentences); ++i) {
    const int64_t sentence = chunk.first + i;
    const int64_t seqlen = batch.cu_seqlens[sentence + 1] - batch.cu_seqlens[sentence];
    const int64_t row = batch.cu_seqlens[sentence] - first_token;
    for (size_t j = 0; j < outputs.poolings.size(); ++j)
      kernels_.rows.pool({.x = x + row * ldx,
                          .ldx = ldx,
                          .mask = nullptr,
                          .y = outputs.pooled + sentence * width + static_cast<int64_t>(j) * H,
                          .first_row = outputs.pool_from,
                          .num_rows = seqlen,
                          .H = H,
                          .pooling = outputs.poolings[j]});
  }
}

bool Encoder::encode(const Batch& batch, const Outputs& outputs, int64_t max_sentences,
                     int num_threads, const ShouldStop& should_stop) const {
  check(weights_.is_finished(), "the encoder's weights are not complete: call finish_weights()");
  num_threads = std::min(num_threads, ThreadPool::most_threads());
  const Schedule schedule = plan(batch, max_sentences, num_threads);
  check_ids(description_, batch);
  check(outputs.pool_from >= 0, "pool_from is ", outputs.pool_from, ", wanted >= 0");
  const int64_t num_chunks = static_cast<int64_t>(schedule.chunks.size());
  const int64_t num_shared = schedule.num_shared_chunks;
  if (num_chunks == 0) return true;

  const auto most_tokens = [&](int64_t from, int64_t to) {
    int64_t most = 0;
    for (int64_t i = from; i < to; ++i) {
      const Chunk& chunk = schedule.chunks[static_cast<size_t>(i)];
      most = std::max<int64_t>(most, batch.cu_seqlens[chunk.last] - batch.cu_seqlens[chunk.first]);
    }
    return most;
  };
  const int64_t shared_tokens = most_tokens(0, num_shared);
  const int64_t tokens_alone = most_tokens(num_shared, num_chunks);
  int64_t max_seqlen = 0;
  for (int64_t i = 0; i < batch.batch; ++i)
    max_seqlen = std::max<int64_t>(max_seqlen, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);

  Call call{batch, outputs, StopRequest(should_stop)};
  call.next_chunk = num_shared;
  SpinBarrier barrier;
  ThreadPool::Turn turn(ThreadPool::get(), num_threads, should_stop);
  if (!turn.has_come()) return false;
  std::unique_ptr<Workspace> shared_ws;
  if (num_shared > 0) {
    shared_ws = borrow_workspace(shared_tokens, max_seqlen, turn.num_members());
    shared_ws->is_timed = outputs.ticks != nullptr;
  }
  const ThreadPool::Task work = [&](int member, int size) {
    Team team(member, size, member == 0, call.stop, &barrier);
    for (int64_t i = 0; i < num_shared; ++i)
      if (!encode_chunk(call, schedule.chunks[static_cast<size_t>(i)], *shared_ws, team)) return;
    if (num_shared == num_chunks) return;

    std::unique_ptr<Workspace> ws = borrow_workspace(tokens_alone, max_seqlen, 1);
    ws->is_timed = outputs.ticks != nullptr;
    Team alone(0, 1, member == 0, call.stop, nullptr);
    for (int64_t i = call.next_chunk++; i < num_chunks; i = call.next_chunk++)
      if (!encode_chunk(call, schedule.chunks[static_cast<size_t>(i)], *ws, alone)) break;
    add_ticks(outputs, *ws);
    return_workspace(std::move(ws));
  };
  turn.run(work, [&] { call.stop.ask(0); });
  if (shared_ws) {
    add_ticks(outputs, *shared_ws);
    return_workspace(std::move(shared_ws));
  }
  return !call.stop.is_made();
}

CostModel Encoder::cost_model() const {
  // One token alone takes as long as reading the weights: on Zen 3 2.5 ms for the 42 MB of float32
  // and 0.48 for the 10.6 MB of int8, in which each computes about five operations a byte. A
  // meeting costs a microsecond with the wait for the slowest, and a layer has seven
  // (encoder.cpp's team.meet()).
  constexpr double kOperationsPerByte = 5.0, kOperationsPerMeeting = 1e5;
  const double H = static_cast<double>(description_.hidden_size);
  const double F = static_cast<double>(description_.intermediate_size);
  const double L = static_cast<double>(description_.num_hidden_layers);
  const double Q = static_cast<double>(description_.query_columns());
  const double KV = static_cast<double>(description_.key_columns());
  const double num_weights =
      L * (H * (Q + 2 * KV) + Q * H + (description_.has_gate ? 3 : 2) * H * F);
  const double bytes_per_weight = static_cast<double>(kernels_.linear.format.panel_bytes(64)) /
                                  static_cast<double>(64 * kernels_.linear.format.panel_columns);
  return {.per_token = 2 * num_weights,
          .per_pair = 4 * L * Q,
          .per_chunk = num_weights * bytes_per_weight * kOperationsPerByte,
          .per_shared_chunk = (7 * L + 3) * kOperationsPerMeeting};
}

Schedule Encoder::plan(const Batch& batch, int64_t max_sentences, int num_threads,
                       std::vector<Schedule>* considered) const {
  check_lengths(description_, batch);
  check(max_sentences > 0, "batch_size is ", max_sentences, ", wanted > 0");
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  num_threads = std::min(num_threads, ThreadPool::most_threads());
  return plan_schedule(batch.cu_seqlens, batch.batch, max_sentences, kernels_.blocks.chunk_tokens,
                       num_threads, cost_model(), considered);
}

std::unique_ptr<Workspace> Encoder::borrow_workspace(int64_t tokens, int64_t max_seqlen,
                                                     int64_t members) const {
  const WorkspaceSizes sizes =
      workspace_sizes(description_, kernels_.linear, kernels_.blocks, tokens, max_seqlen, members);
  WorkspaceSizes allocated = sizes;
  std::unique_ptr<Workspace> dropped;  // its memory goes back when the mutex is free
  {
    const std::lock_guard<std::mutex> lock(fork_safe_mutex());
    for (auto it = free_workspaces_.begin(); it != free_workspaces_.end(); ++it) {
      if (!(*it)->allocated.covers(sizes)) continue;
      std::unique_ptr<Workspace> ws = std::move(*it);
      free_workspaces_.erase(it);
      ws->sizes = sizes;
      return ws;
    }
    // Grow one rather than collect one of every size, and make it smaller in no respect: so the
    // memory of a process settles, whatever the order of its calls.
    if (!free_workspaces_.empty()) {
      dropped = std::move(free_workspaces_.back());
      free_workspaces_.pop_back();
      allocated = sizes.joined_with(dropped->allocated);
    }
  }
  dropped.reset();
  auto ws = std::make_unique<Workspace>(allocated);
  ws->sizes = sizes;
  return ws;
}

void Encoder::add_ticks(const Outputs& outputs, Workspace& ws) const {
  if (!outputs.ticks) return;
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  for (uint64_t StageTicks::* stage :
       {&StageTicks::embedding, &StageTicks::matrices, &StageTicks::quantization,
        &StageTicks::activation, &StageTicks::attention, &StageTicks::layer_norm,
        &StageTicks::pooling})
    outputs.ticks->*stage += ws.ticks.*stage;
  ws.ticks = {};
}

void Encoder::return_workspace(std::unique_ptr<Workspace> workspace) const {
  // A sentence of 512 tokens at BERT-large needs 40 MiB and up to 4 MiB of scratch memory a member;
  // what a usual call needs is less.
  constexpr int64_t kMebibyte = int64_t{1} << 20;
  if (workspace->size_bytes() > (64 + 4 * workspace->allocated.members) * kMebibyte) return;
  const std::lock_guard<std::mutex> lock(fork_safe_mutex());
  free_workspaces_.push_back(std::move(workspace));
}

}  // namespace minifuse
