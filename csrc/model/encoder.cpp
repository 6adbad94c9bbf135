// The encoder as its equations. A thread takes a chunk of sentences through all layers alone (a team
// of one), or the threads of a team share a chunk: each takes a share of the output columns, rows
// or heads, and all meet at a barrier after every step. Either way each number is the same sum in
// the same order, and plan.cpp says which way is cheaper.

#include "model/encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "common/fork_safe.h"
#include "threads/barrier.h"
#include "threads/pool.h"

namespace minifuse {

// Identifies a thread within its team, and holds the barrier that the team shares.
struct Team {
  int member, size;
  bool is_caller;  // the thread that called encode(): the one that may ask should_stop
  SpinBarrier* barrier;

  bool is_alone() const { return size == 1; }
  void meet() const {
    if (!is_alone()) barrier->wait(size);
  }
  // This member's part of n items.
  int64_t begin(int64_t n) const { return n * member / size; }
  int64_t end(int64_t n) const { return n * (member + 1) / size; }
};

struct Encoder::Call {
  const Batch& batch;
  const Outputs& outputs;
  const std::function<bool()>& should_stop;
  const uint64_t process = fork_generation();
  std::atomic<int64_t> next_chunk{0};
  std::atomic<bool> is_stopped{false};
};

namespace {

// f(), its ticks added to a stage where they are asked for.
template <typename F>
void timed(StageTicks* ticks, uint64_t StageTicks::* stage, F f) {
  const uint64_t start = ticks_now();
  f();
  if (ticks) ticks->*stage += ticks_now() - start;
}

}  // namespace

Encoder::Encoder(const ModelDescription& description, const InstructionSet& isa,
                 WeightType weight_type, int64_t l2_bytes)
    : description_(description),
      blocks_(block_sizes(l2_bytes)),
      kernels_(*isa.kernels),
      linear_kernels_(isa.linear(weight_type)),
      attention_(isa.attention(weight_type)),
      weights_(description, linear_kernels_.format) {}

Encoder::~Encoder() = default;

void Encoder::layer(const LayerWeights& w, const int32_t* cu_seqlens, const Chunk& chunk,
                    Workspace& ws, const Team& team, float* matrix_inputs) const noexcept {
  const int64_t H = description_.hidden_size, A = description_.num_attention_heads,
                D = description_.head_dim();
  const int64_t M = cu_seqlens[chunk.last] - cu_seqlens[chunk.first];
  float *x = ws.x.data(), *y = ws.y.data(), *qkv = ws.qkv.data(), *context = ws.context.data();
  float* hidden = ws.hidden.data();
  const WorkspaceSizes& ld = ws.sizes;

  StageTicks* ticks = ws.ticks_of(team.member);
  // The ticks of f() that are not of a stage inside it go to the matrices.
  const auto timed_matrix = [&](const auto& f) {
    if (!ticks) return f();
    const auto inside = [&] { return ticks->quantization + ticks->activation + ticks->layer_norm; };
    const uint64_t start = ticks_now(), before = inside();
    f();
    ticks->matrices += ticks_now() - start - (inside() - before);
  };

  const auto with_resources = [&](LinearParams params) {
    params.ticks = ticks;
    params.scratch = ws.linear_scratch_of(team.member);
    params.scratch_bytes = ws.linear_scratch_bytes_of(team.member);
    return params;
  };

  // Columns shared out; y [M, N] = activation(x W^T + b).
  const auto linear = [&](LinearParams params) {
    params = with_resources(params);
    const int64_t num_panels = params.panel_end;
    params.panel_begin = team.begin(num_panels);
    params.panel_end = team.end(num_panels);
    timed_matrix([&] { linear_kernels_.linear(params); });
    team.meet();
  };
  // y [M, H] = LayerNorm(x W^T + b + residual): fused for one, columns then rows for a team.
  const auto linear_residual_layer_norm = [&](LinearParams params, const float* residual,
                                              const Buffer& gamma, const Buffer& beta) {
    params = with_resources(params);
    LayerNormParams norm{.x = params.y,
                         .ldx = params.ldy,
                         .residual = residual,
                         .ldr = ld.ldx,
                         .gamma = gamma.data(),
                         .beta = beta.data(),
                         .eps = description_.layer_norm_eps,
                         .y = params.y,
                         .ldy = params.ldy,
                         .M = params.M,
                         .H = H};
    if (team.is_alone())
      return timed_matrix([&] { linear_kernels_.linear_residual_layer_norm(params, norm); });
    linear(params);
    const int64_t begin = team.begin(params.M);
    norm.x = norm.y = params.y + begin * params.ldy;
    norm.residual = residual + begin * ld.ldx;
    norm.M = team.end(params.M) - begin;
    timed(ticks, &StageTicks::layer_norm, [&] { kernels_.layer_norm(norm); });
    team.meet();
  };

  // Passes inputs of a matrix, from row `first` of the chunk on, to the caller.
  const auto show = [&](const float* rows, int64_t ldx, int64_t first, int64_t num_rows, int64_t K,
                        int64_t column) {
    if (!matrix_inputs || team.member != 0) return;
    for (int64_t row = 0; row < num_rows; ++row)
      std::memcpy(matrix_inputs + (first + row) * inputs_per_layer(description_) + column,
                  rows + row * ldx, static_cast<size_t>(K) * sizeof(float));
  };

  // Q, K, V = X Wq + bq, X Wk + bk, X Wv + bv
  show(x, ld.ldx, 0, M, H, 0);
  linear(w.qkv.params(x, ld.ldx, qkv, ld.ldqkv, M, Activation::kNone));

  // per sentence, per head:  O = softmax(Q K^T / sqrt(D)) V
  const int64_t num_sentences = chunk.last - chunk.first;
  const int64_t item_end = team.end(num_sentences * A);
  const uint64_t attention_start = ticks_now();
  for (int64_t item = team.begin(num_sentences * A); item < item_end;) {
    const int64_t sentence = chunk.first + item / A, head = item % A;
    const int64_t heads = std::min(A - head, item_end - item);
    const int64_t row = cu_seqlens[sentence] - cu_seqlens[chunk.first];
    const int64_t seqlen = cu_seqlens[sentence + 1] - cu_seqlens[sentence];
    const float* q = qkv + row * ld.ldqkv;
    attention_({.q = q,
                .k = q + H,
                .v = q + 2 * H,
                .out = context + row * ld.ldx,
                .q_row_stride = ld.ldqkv,
                .k_row_stride = ld.ldqkv,
                .v_row_stride = ld.ldqkv,
                .out_row_stride = ld.ldx,
                .q_head_stride = D,
                .k_head_stride = D,
                .v_head_stride = D,
                .out_head_stride = D,
                .seqlen_q = seqlen,
                .seqlen_k = seqlen,
                .head_dim = D,
                .key_index = nullptr,
                .head_begin = head,
                .head_end = head + heads,
                .scale = 1.0f / std::sqrt(static_cast<float>(D)),
                .scratch = ws.attention_scratch_of(team.member)});
    item += heads;
  }
  if (ticks) ticks->attention += ticks_now() - attention_start;
  team.meet();

  // Y = LayerNorm(X + O Wo + bo)
  show(context, ld.ldx, 0, M, H, H);
  linear_residual_layer_norm(w.out.params(context, ld.ldx, y, ld.ldx, M, Activation::kNone), x,
                             w.attention_gamma, w.attention_beta);

  // X = LayerNorm(Y + GELU(Y W1 + b1) W2 + b2), rows block by block while GELU(...) is in L2
  show(y, ld.ldx, 0, M, H, 2 * H);
  const int64_t block = team.is_alone() ? ffn_block_rows(M, blocks_, linear_kernels_) : M;
  for (int64_t row = 0; row < M; row += block) {
    const int64_t rows = std::min(block, M - row);
    const float* y_rows = y + row * ld.ldx;
    linear(w.ffn1.params(y_rows, ld.ldx, hidden, ld.ldhidden, rows, description_.activation));
    show(hidden, ld.ldhidden, row, rows, description_.intermediate_size, 3 * H);
    linear_residual_layer_norm(
        w.ffn2.params(hidden, ld.ldhidden, x + row * ld.ldx, ld.ldx, rows, Activation::kNone),
        y_rows, w.output_gamma, w.output_beta);
  }
}

bool Encoder::encode_chunk(Call& call, const Chunk& chunk, Workspace& ws,
                           const Team& team) const noexcept {
  const Batch& batch = call.batch;
  const Outputs& outputs = call.outputs;
  const int64_t H = description_.hidden_size;
  const int64_t first_token = batch.cu_seqlens[chunk.first];
  const int64_t M = batch.cu_seqlens[chunk.last] - first_token;
  float* x = ws.x.data();
  const int64_t ldx = ws.sizes.ldx;

  // Rows of this member: X0 = LayerNorm(word[id] + position[i] + token_type[0])
  const int64_t row_begin = team.begin(M), row_end = team.end(M);
  for (int64_t sentence = chunk.first; sentence < chunk.last; ++sentence) {
    const int64_t begin = batch.cu_seqlens[sentence] - first_token;
    const int64_t end = batch.cu_seqlens[sentence + 1] - first_token;
    for (int64_t row = std::max(begin, row_begin); row < std::min(end, row_end); ++row)
      ws.positions[static_cast<size_t>(row)] = static_cast<int32_t>(row - begin);
  }
  StageTicks* ticks = ws.ticks_of(team.member);
  timed(ticks, &StageTicks::embedding, [&] {
    kernels_.embed_layer_norm({.ids = batch.ids + first_token + row_begin,
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

  const auto copy_rows = [&](float* destination) {
    for (int64_t row = row_begin; row < row_end; ++row)
      std::memcpy(destination + (first_token + row) * H, x + row * ldx,
                  static_cast<size_t>(H) * sizeof(float));
  };
  const int64_t num_layers = description_.num_hidden_layers;
  for (int64_t index = 0; index < num_layers; ++index) {
    if (outputs.hidden_states) copy_rows(outputs.hidden_states + index * batch.total_tokens * H);
    // The answer is written before the barrier and read behind it, and the caller cannot write again
    // before every member has met it in this layer: a team stops together or not at all. A team
    // reads is_stopped nowhere else.
    if (team.is_caller && call.should_stop) {
      if (call.should_stop()) call.is_stopped = true;
      if (fork_generation() != call.process) return false;  // a child has no team to meet (run())
    }
    team.meet();
    if (call.is_stopped) return false;
    float* matrix_inputs =
        outputs.matrix_inputs ? outputs.matrix_inputs + (index * batch.total_tokens + first_token) *
                                                            inputs_per_layer(description_)
                              : nullptr;
    layer(weights_.layers[static_cast<size_t>(index)], batch.cu_seqlens, chunk, ws, team,
          matrix_inputs);
  }
  if (outputs.hidden_states) copy_rows(outputs.hidden_states + num_layers * batch.total_tokens * H);
  if (outputs.token_embeddings) copy_rows(outputs.token_embeddings);
  team.meet();
  timed(ticks, &StageTicks::pooling, [&] { pool_chunk(batch, outputs, chunk, ws, team); });
  team.meet();
  return true;
}

void Encoder::pool_chunk(const Batch& batch, const Outputs& outputs, const Chunk& chunk,
                         const Workspace& ws, const Team& team) const {
  if (outputs.pooled == nullptr) return;
  const int64_t H = description_.hidden_size, ldx = ws.sizes.ldx;
  const int64_t first_token = batch.cu_seqlens[chunk.first];
  const int64_t num_sentences = chunk.last - chunk.first;
  const int64_t width = static_cast<int64_t>(outputs.poolings.size()) * H;
  for (int64_t i = team.begin(num_sentences); i < team.end(num_sentences); ++i) {
    const int64_t sentence = chunk.first + i;
    const int64_t seqlen = batch.cu_seqlens[sentence + 1] - batch.cu_seqlens[sentence];
    const int64_t row = batch.cu_seqlens[sentence] - first_token;
    for (size_t j = 0; j < outputs.poolings.size(); ++j)
      kernels_.pool({.x = ws.x.data() + row * ldx,
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
                     int num_threads, const std::function<bool()>& should_stop) const {
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

  Call call{batch, outputs, should_stop};
  call.next_chunk = num_shared;
  SpinBarrier barrier;
  ThreadPool::Turn turn(ThreadPool::get(), num_threads, should_stop);
  if (!turn.has_come()) return false;
  std::unique_ptr<Workspace> shared_ws;
  if (num_shared > 0) {
    shared_ws = borrow_workspace(shared_tokens, max_seqlen, turn.num_members());
    shared_ws->is_timed = outputs.ticks != nullptr;
  }
  turn.run([&](int member, int size) {
    const Team team{member, size, member == 0, &barrier};
    for (int64_t i = 0; i < num_shared; ++i)
      if (!encode_chunk(call, schedule.chunks[static_cast<size_t>(i)], *shared_ws, team)) return;
    if (num_shared == num_chunks) return;

    std::unique_ptr<Workspace> ws = borrow_workspace(tokens_alone, max_seqlen, 1);
    ws->is_timed = outputs.ticks != nullptr;
    const Team alone{0, 1, member == 0, nullptr};
    for (int64_t i = call.next_chunk++; i < num_chunks && !call.is_stopped; i = call.next_chunk++)
      encode_chunk(call, schedule.chunks[static_cast<size_t>(i)], *ws, alone);
    add_ticks(outputs, *ws);
    return_workspace(std::move(ws));
  });
  if (shared_ws) {
    add_ticks(outputs, *shared_ws);
    return_workspace(std::move(shared_ws));
  }
  return !call.is_stopped;
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
  const double num_weights = L * (4 * H * H + 2 * H * F);
  const double bytes_per_weight = static_cast<double>(linear_kernels_.format.panel_bytes(64)) /
                                  static_cast<double>(64 * linear_kernels_.format.panel_columns);
  return {.per_token = 2 * num_weights,
          .per_pair = 4 * L * H,
          .per_chunk = num_weights * bytes_per_weight * kOperationsPerByte,
          .per_shared_chunk = (7 * L + 3) * kOperationsPerMeeting};
}

Schedule Encoder::plan(const Batch& batch, int64_t max_sentences, int num_threads,
                       std::vector<Schedule>* considered) const {
  check_lengths(description_, batch);
  check(max_sentences > 0, "batch_size is ", max_sentences, ", wanted > 0");
  check(num_threads > 0, "num_threads is ", num_threads, ", wanted > 0");
  num_threads = std::min(num_threads, ThreadPool::most_threads());
  return plan_schedule(batch.cu_seqlens, batch.batch, max_sentences, blocks_.chunk_tokens,
                       num_threads, cost_model(), considered);
}

std::unique_ptr<Workspace> Encoder::borrow_workspace(int64_t tokens, int64_t max_seqlen,
                                                     int64_t members) const {
  const WorkspaceSizes sizes =
      workspace_sizes(description_, linear_kernels_, blocks_, tokens, max_seqlen, members);
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
    // Grow one rather than collect one of every size.
    if (!free_workspaces_.empty()) {
      dropped = std::move(free_workspaces_.back());
      free_workspaces_.pop_back();
    }
  }
  dropped.reset();
  return std::make_unique<Workspace>(sizes);
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
