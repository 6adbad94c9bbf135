// The steps of a layer as kernel calls, and the flow of chunks: ids, positions, offsets and attention's tiles of a
// chunk go up in one copy, its vectors come back in one, and while one of two passes computes the
// other is filled.

#include "model/cuda/cuda_encoder.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "common/float_bits.h"
#include "model/layer.h"

namespace minifuse {

using cuda::AttentionTile;
using cuda::DeviceBuffer;

namespace {

// Tokens of a pass: 32,768 keep 132 SMs busy with 128-row tiles (nine column tiles each), and take
// 300 MB of activations a pass in float32 at 384 columns. Smaller where memory is short.
constexpr int64_t kPassTokens = 32768;
constexpr int64_t kFewestPassTokens = 512, kFewestPassSentences = 64;

// A little more than what is asked for: calls of slowly growing size must not allocate each time.
int64_t room_for(int64_t count, int64_t fewest) {
  int64_t room = fewest;
  while (room < count) room *= 2;
  return room;
}

// A chunk of at most so many tokens is launched as a graph, kept by its shape: few tokens
// give the device less to do than their launches cost the host. The buffers of a pass stay where
// they are, so a graph serves again.
constexpr int kGraphTokens = 2048;
constexpr size_t kMostGraphs = 64;

// The feed-forward of so few tokens takes two kernels, where those give the same bits: the fused one
// has a block for 128 rows, and most SMs would wait for a few.
constexpr int64_t kSplitTokens = 4096;

size_t round_up_bytes(size_t size_bytes) { return (size_bytes + 255) / 256 * 256; }

}  // namespace

struct CudaEncoder::Pass {
  Pass(cuda::Runtime& runtime) : runtime(runtime), stream(runtime.create_stream()) {}
  ~Pass() {
    forget_graphs();
    runtime.destroy_stream(stream);
    if (staging) runtime.release_pinned(staging);
    if (results) runtime.release_pinned(results);
  }

  cuda::Runtime& runtime;
  cuda::Stream stream;
  int64_t tokens = 0, sentences = 0;  // room for so many
  DeviceBuffer x, y, context;  // T [tokens, H]
  DeviceBuffer qkv;  // T [tokens, 3H]
  DeviceBuffer hidden;  // T [tokens, F], where the feed-forward takes two kernels
  DeviceBuffer pooled;  // float32 [sentences, poolings * H]
  DeviceBuffer inputs;  // the four arrays of a chunk, each at a multiple of 256 bytes
  std::byte* staging = nullptr;  // the same on the host, pinned
  std::byte* results = nullptr;  // of the host, pinned: pooled, and the rows of x at rows_at
  size_t ids_at = 0, positions_at = 0, offsets_at = 0, tiles_at = 0, rows_at = 0;
  Chunk chunk{0, 0};  // under way; empty: none

  // Arguments that a graph depends on, besides the pass.
  using Shape = std::tuple<int, int, int, int64_t, bool, bool, bool, std::vector<Pooling>>;
  std::map<Shape, cuda::Graph> graphs;

  void forget_graphs() {
    for (const auto& [shape, graph] : graphs) runtime.destroy_graph(graph);
    graphs.clear();
  }
  bool is_busy() const { return chunk.last > chunk.first; }
  const void* input(size_t at) const { return static_cast<const std::byte*>(inputs.data()) + at; }
};

CudaEncoder::CudaEncoder(const ModelDescription& description,
                         std::shared_ptr<cuda::Runtime> runtime, const std::string& element)
    : description_(description),
      runtime_(std::move(runtime)),
      kernels_(runtime_->kernels(element)),
      rows_(row_major_format(element)) {
  description.validate();
  const int64_t D = description.head_dim(), H = description.hidden_size,
                F = description.intermediate_size;
  const int64_t narrow = 128 / kernels_.element_bytes;
  check(D == 32 || D == 64, "device cuda: heads of ", D, ", wanted 32 or 64; use device='cpu'");
  check(H <= cuda::kMaxHidden, "device cuda: hidden_size=", H, ", wanted at most ",
        cuda::kMaxHidden, "; use device='cpu'");
  check(F % narrow == 0, "device cuda: intermediate_size=", F, ", wanted a multiple of ", narrow,
        "; use device='cpu'");
  check(description.activation <= Activation::kRelu,
        "device cuda: activation: wanted gelu, gelu_new or relu; use device='cpu'");
  check(description.has_position_embeddings && !description.has_relative_bias &&
            description.rotary_theta == 0 && !description.has_gate &&
            description.norms == Norms::kPost && description.windows.empty() &&
            description.qkv_columns() == 3 * H && !description.has_head_norms &&
            description.attention_scale == 0 && !description.is_causal,
        "device cuda: only models of BERT's kind run there (absolute positions, no gate); use "
        "device='cpu'");
  weights_ = std::make_unique<Weights>(description, rows_);
}

CudaEncoder::~CudaEncoder() = default;

void CudaEncoder::finish_weights() {
  check(on_device_ == nullptr, "weights: they are on the device already");
  weights_->finish();
  runtime_->keep_device([&] {
    on_device_ = std::make_unique<CudaWeights>(description_, *weights_, rows_, *runtime_);
  });
  weights_ = std::make_unique<Weights>(description_, rows_);  // the host's copy has served
}

// The steps of a layer, put onto the stream of a pass.
struct CudaEncoder::Steps {
  const CudaEncoder& encoder;
  const Pass& pass;
  int M, num_tiles;
  void *x, *y, *qkv, *context;

  const ModelDescription& model() const { return encoder.description_; }
  const cuda::Kernels& kernels() const { return encoder.kernels_; }
  static const float* floats(const DeviceBuffer& buffer) {
    return static_cast<const float*>(buffer.data());
  }
  cuda::LinearParams params(const CudaWeights::Matrix& w, const void* from, void* to,
                            Activation activation = Activation::kNone) const {
    return {.x = from,
            .ldx = w.K,
            .weight = w.weight.data(),
            .bias = floats(w.bias),
            .y = to,
            .ldy = w.N,
            .M = M,
            .N = w.N,
            .K = w.K,
            .activation = activation};
  }
  cuda::NormParams params(const CudaWeights::Norm& norm, const void* residual) const {
    return {residual, static_cast<int>(model().hidden_size), floats(norm.gamma), floats(norm.beta),
            model().layer_norm_eps};
  }

  // to = from W^T + b
  void linear(const CudaWeights::Matrix& w, const void* from, void* to) const {
    kernels().linear(pass.stream, params(w, from, to));
  }
  // out = softmax(q k^T / sqrt(D)) v in each sentence
  void attention(const void* joined, void* out) const {
    const int H = static_cast<int>(model().hidden_size), D = static_cast<int>(model().head_dim());
    const auto part = [&](int which) {  // 0: q, 1: k, 2: v
      return static_cast<const std::byte*>(joined) + which * H * kernels().element_bytes;
    };
    kernels().attention(pass.stream,
                        {.q = part(0),
                         .k = part(1),
                         .v = part(2),
                         .ldq = 3 * H,
                         .ldk = 3 * H,
                         .ldv = 3 * H,
                         .mask = nullptr,
                         .out = out,
                         .ldout = H,
                         .tiles = static_cast<const AttentionTile*>(pass.input(pass.tiles_at)),
                         .seqlen_q = 0,
                         .seqlen_k = 0,
                         .num_tiles = num_tiles,
                         .num_heads = H / D,
                         .head_dim = D,
                         .scale = 1.0f / std::sqrt(static_cast<float>(D))});
  }
  // to = LayerNorm(from W^T + b + residual)
  void linear_residual_norm(const CudaWeights::Matrix& w, const void* from, const void* residual,
                            const CudaWeights::Norm& norm, void* to) const {
    kernels().linear_residual_layer_norm(pass.stream,
                                         {params(w, from, to), params(norm, residual)});
  }
  // to = LayerNorm(activation(from W1^T + b1) W2^T + b2 + from): one kernel, or two where a pass has
  // few tokens or wide rows.
  void feed_forward_residual_norm(const CudaWeights::Matrix& w1, const CudaWeights::Matrix& w2,
                                  const void* from, const CudaWeights::Norm& norm, void* to) const {
    if (encoder.rows_of_hidden(M) == M) {
      kernels().linear(pass.stream, params(w1, from, pass.hidden.data(), model().activation));
      linear_residual_norm(w2, pass.hidden.data(), from, norm, to);
      return;
    }
    kernels().ffn_residual_layer_norm(pass.stream, {.x = from,
                                                    .ldx = w1.K,
                                                    .w1 = w1.weight.data(),
                                                    .b1 = floats(w1.bias),
                                                    .w2 = w2.weight.data(),
                                                    .b2 = floats(w2.bias),
                                                    .y = to,
                                                    .ldy = w2.N,
                                                    .M = M,
                                                    .H = w2.N,
                                                    .F = w1.N,
                                                    .activation = model().activation,
                                                    .norm = params(norm, from)});
  }
};

void CudaEncoder::start(Pass& pass, const Batch& batch, const Outputs& outputs,
                        const Chunk& chunk) {
  const int64_t first_token = batch.cu_seqlens[chunk.first];
  const int M = static_cast<int>(batch.cu_seqlens[chunk.last] - first_token);
  const int num_sentences = static_cast<int>(chunk.last - chunk.first);

  auto* ids = reinterpret_cast<int32_t*>(pass.staging + pass.ids_at);
  auto* positions = reinterpret_cast<int32_t*>(pass.staging + pass.positions_at);
  auto* offsets = reinterpret_cast<int32_t*>(pass.staging + pass.offsets_at);
  auto* tiles = reinterpret_cast<AttentionTile*>(pass.staging + pass.tiles_at);
  std::copy_n(batch.ids + first_token, M, ids);
  int num_tiles = 0;
  for (int i = 0; i <= num_sentences; ++i) {
    offsets[i] = static_cast<int32_t>(batch.cu_seqlens[chunk.first + i] - first_token);
    if (i == num_sentences) break;
    const auto seqlen = static_cast<int32_t>(batch.cu_seqlens[chunk.first + i + 1] -
                                             batch.cu_seqlens[chunk.first + i]);
    int64_t position = 0;
    for (int32_t row = offsets[i]; row < offsets[i] + seqlen; ++row) {
      const bool is_padding = ids[row] == description_.padding_id;
      positions[row] = description_.position_row(batch.token_type(first_token + row),
                                                 is_padding ? -1 : position);
      position += !is_padding;
    }
    cuda::for_each_attention_tile(offsets[i], seqlen, offsets[i], seqlen,
                                  [&](const AttentionTile& tile) { tiles[num_tiles++] = tile; });
  }
  pass.chunk = chunk;
  if (M > kGraphTokens) {
    enqueue(pass, outputs, M, num_sentences, num_tiles);
  } else {
    launch_graph(pass, outputs, M, num_sentences, num_tiles);
  }
  if (outputs.is_on_device) {
    const int64_t width = description_.hidden_size * static_cast<int64_t>(outputs.poolings.size());
    runtime_->copy(outputs.pooled + chunk.first * width, pass.pooled.data(),
                   static_cast<size_t>(num_sentences * width) * sizeof(float), pass.stream);
  }
}

void CudaEncoder::launch_graph(Pass& pass, const Outputs& outputs, int M, int num_sentences,
                               int num_tiles) {
  const Pass::Shape shape{M,
                          num_sentences,
                          num_tiles,
                          outputs.pool_from,
                          outputs.pooled != nullptr,
                          outputs.token_embeddings != nullptr,
                          outputs.is_on_device,
                          outputs.poolings};
  auto found = pass.graphs.find(shape);
  if (found == pass.graphs.end()) {
    if (pass.graphs.size() >= kMostGraphs) pass.forget_graphs();
    runtime_->begin_capture(pass.stream);
    enqueue(pass, outputs, M, num_sentences, num_tiles);
    found = pass.graphs.emplace(shape, runtime_->end_capture(pass.stream)).first;
  }
  runtime_->launch(found->second, pass.stream);
}

// All of a chunk onto the pass's stream, from its inputs on the host to its results there.
void CudaEncoder::enqueue(Pass& pass, const Outputs& outputs, int M, int num_sentences,
                          int num_tiles) {
  const int H = static_cast<int>(description_.hidden_size);
  const size_t size_bytes = pass.tiles_at + static_cast<size_t>(num_tiles) * sizeof(AttentionTile);
  runtime_->upload(pass.inputs.data(), pass.staging, size_bytes, pass.stream);

  // X = LayerNorm(word[id] + position[i] + token_type[t]), the latter two in one table
  kernels_.embed_layer_norm(
      pass.stream, {.ids = static_cast<const int32_t*>(pass.input(pass.ids_at)),
                    .positions = static_cast<const int32_t*>(pass.input(pass.positions_at)),
                    .word = on_device_->word.data(),
                    .position = on_device_->position.data(),
                    .gamma = static_cast<const float*>(on_device_->embedding_gamma.data()),
                    .beta = static_cast<const float*>(on_device_->embedding_beta.data()),
                    .eps = description_.layer_norm_eps,
                    .y = pass.x.data(),
                    .ldy = H,
                    .M = M,
                    .H = H});
  Steps steps{*this,
              pass,
              M,
              num_tiles,
              pass.x.data(),
              pass.y.data(),
              pass.qkv.data(),
              pass.context.data()};
  for (const CudaWeights::Layer& layer : on_device_->layers) post_norm_layer(steps, layer);

  const int width = H * static_cast<int>(outputs.poolings.size());
  for (size_t j = 0; outputs.pooled && j < outputs.poolings.size(); ++j)
    kernels_.pool(pass.stream,
                  {.x = pass.x.data(),
                   .ldx = H,
                   .cu_seqlens = static_cast<const int32_t*>(pass.input(pass.offsets_at)),
                   .mask = nullptr,
                   .y = static_cast<float*>(pass.pooled.data()) + static_cast<int>(j) * H,
                   .ldy = width,
                   .batch = num_sentences,
                   .H = H,
                   .first_row = static_cast<int>(std::min<int64_t>(outputs.pool_from, INT32_MAX)),
                   .pooling = outputs.poolings[j]});
  if (outputs.is_on_device) return;  // start() copies what is pooled to where this call wants it
  if (outputs.pooled)
    runtime_->download(pass.results, pass.pooled.data(),
                       static_cast<size_t>(num_sentences) * static_cast<size_t>(width) * 4,
                       pass.stream);
  if (outputs.token_embeddings)
    runtime_->download(pass.results + pass.rows_at, pass.x.data(),
                       static_cast<size_t>(M) * static_cast<size_t>(H * kernels_.element_bytes),
                       pass.stream);
}

namespace {

float float_of(const std::byte* data, int64_t i, const cuda::Kernels& kernels) {
  if (kernels.element_bytes == 4) return reinterpret_cast<const float*>(data)[i];
  const uint16_t bits = reinterpret_cast<const uint16_t*>(data)[i];
  return std::strcmp(kernels.element, "bfloat16") == 0 ? from_bfloat16_bits(bits)
                                                       : from_float16_bits(bits);
}

}  // namespace

void CudaEncoder::finish(Pass& pass, const Batch& batch, const Outputs& outputs) {
  if (!pass.is_busy()) return;
  const Chunk chunk = pass.chunk;
  pass.chunk = {0, 0};
  runtime_->synchronize(pass.stream);
  if (outputs.is_on_device) return;
  const int64_t H = description_.hidden_size;
  if (outputs.pooled) {
    const int64_t width = H * static_cast<int64_t>(outputs.poolings.size());
    std::memcpy(outputs.pooled + chunk.first * width, pass.results,
                static_cast<size_t>((chunk.last - chunk.first) * width) * sizeof(float));
  }
  if (!outputs.token_embeddings) return;
  const int64_t begin = int64_t{batch.cu_seqlens[chunk.first]} * H;
  const int64_t end = int64_t{batch.cu_seqlens[chunk.last]} * H;
  for (int64_t i = begin; i < end; ++i)
    outputs.token_embeddings[i] = float_of(pass.results + pass.rows_at, i - begin, kernels_);
}

// Sentences in order, as many as fit.
std::vector<CudaEncoder::Chunk> CudaEncoder::chunks_of(const Batch& batch, int64_t max_sentences,
                                                       int64_t max_tokens) const {
  std::vector<Chunk> chunks;
  for (int64_t first = 0; first < batch.batch;) {
    int64_t last = first + 1;
    while (last < batch.batch && last - first < max_sentences &&
           batch.cu_seqlens[last + 1] - batch.cu_seqlens[first] <= max_tokens)
      ++last;
    chunks.push_back({first, last});
    first = last;
  }
  return chunks;
}

// Returns how many rows store the intermediate of the feed-forward in global memory.
int64_t CudaEncoder::rows_of_hidden(int64_t tokens) const {
  if (description_.hidden_size > kernels_.max_ffn_hidden) return tokens;
  return description_.hidden_size <= kernels_.max_split_hidden ? std::min(tokens, kSplitTokens) : 0;
}

// Both passes with room for so much, or as much less as memory asks for.
void CudaEncoder::make_room(int64_t tokens, int64_t sentences, size_t num_poolings) {
  const size_t H = static_cast<size_t>(description_.hidden_size);
  const size_t F = static_cast<size_t>(description_.intermediate_size);
  const size_t size = static_cast<size_t>(kernels_.element_bytes);
  for (auto& pass : passes_) pass.reset();  // what they hold may be what is missing
  for (auto& pass : passes_) {
    pass = std::make_unique<Pass>(*runtime_);
    const size_t M = static_cast<size_t>(tokens), B = static_cast<size_t>(sentences);
    const auto room = [&](DeviceBuffer& buffer, size_t size_bytes, const char* name) {
      void* memory = runtime_->allocate(size_bytes, name);
      if (memory == nullptr) throw std::bad_alloc();
      buffer = DeviceBuffer(*runtime_, memory, size_bytes);
    };
    room(pass->x, M * H * size, "x");
    room(pass->y, M * H * size, "y");
    room(pass->context, M * H * size, "context");
    room(pass->qkv, M * 3 * H * size, "qkv");
    if (const auto rows = static_cast<size_t>(rows_of_hidden(tokens)))
      room(pass->hidden, rows * F * size, "hidden");
    room(pass->pooled, B * num_poolings * H * sizeof(float), "pooled");
    pass->positions_at = round_up_bytes(M * sizeof(int32_t));
    pass->offsets_at = 2 * pass->positions_at;
    pass->tiles_at = pass->offsets_at + round_up_bytes((B + 1) * sizeof(int32_t));
    // A sentence's last tile may be one row high.
    const size_t num_tiles = M / cuda::kAttentionQueries + B + 1;
    const size_t staging_bytes = pass->tiles_at + num_tiles * sizeof(AttentionTile);
    room(pass->inputs, staging_bytes, "inputs");
    pass->staging = static_cast<std::byte*>(runtime_->allocate_pinned(staging_bytes));
    pass->rows_at = round_up_bytes(B * num_poolings * H * sizeof(float));
    pass->results =
        static_cast<std::byte*>(runtime_->allocate_pinned(pass->rows_at + M * H * size));
    pass->tokens = tokens;
    pass->sentences = sentences;
  }
}

bool CudaEncoder::encode(const Batch& batch, const Outputs& outputs, int64_t max_sentences,
                         const ShouldStop& should_stop) {
  check_lengths(description_, batch);
  check_ids(description_, batch);
  check(outputs.pool_from >= 0, "pool_from is ", outputs.pool_from, ", wanted >= 0");
  check(!outputs.hidden_states && !outputs.matrix_inputs && !outputs.ticks,
        "device cuda: hidden states and profiles come from device='cpu'");
  check(on_device_ != nullptr, "weights: finish_weights() is missing");
  if (batch.batch == 0) return true;
  check(fork_generation() == process_,
        "device cuda: the model was loaded before this process was forked off; load it here");
  // should_stop may run a signal's handler, which must not wait for the call that it interrupts.
  check(owner_.load() != std::this_thread::get_id(),
        "device cuda: this thread is encoding with this model already; a signal handler must not");
  const std::lock_guard<std::mutex> lock(mutex_);
  struct Owner {
    std::atomic<std::thread::id>& id;
    explicit Owner(std::atomic<std::thread::id>& owner) : id(owner) {
      id = std::this_thread::get_id();
    }
    ~Owner() { id = std::thread::id(); }
  } const owner(owner_);
  bool is_complete = false;
  runtime_->keep_device(
      [&] { is_complete = encode_chunks(batch, outputs, max_sentences, should_stop); });
  return is_complete;
}

bool CudaEncoder::encode_chunks(const Batch& batch, const Outputs& outputs, int64_t max_sentences,
                                const ShouldStop& should_stop) {
  int64_t longest = 1;
  for (int64_t i = 0; i < batch.batch; ++i)
    longest = std::max<int64_t>(longest, batch.cu_seqlens[i + 1] - batch.cu_seqlens[i]);
  const size_t num_poolings = std::max<size_t>(outputs.poolings.size(), 1);
  std::vector<Chunk> chunks;
  for (int64_t tokens = std::max(kPassTokens, longest);; tokens = std::max(tokens / 2, longest)) {
    chunks = chunks_of(batch, max_sentences, tokens);
    int64_t most_tokens = 1, most_sentences = 1;
    for (const Chunk& chunk : chunks) {
      most_tokens = std::max<int64_t>(most_tokens,
                                      batch.cu_seqlens[chunk.last] - batch.cu_seqlens[chunk.first]);
      most_sentences = std::max(most_sentences, chunk.last - chunk.first);
    }
    const bool has_room = passes_[1] && passes_[1]->tokens >= most_tokens &&
                          passes_[1]->sentences >= most_sentences &&
                          passes_[1]->pooled.size_bytes() >=
                              static_cast<size_t>(most_sentences * description_.hidden_size) *
                                  num_poolings * sizeof(float);
    if (has_room) break;
    try {
      make_room(room_for(most_tokens, kFewestPassTokens),
                room_for(most_sentences, kFewestPassSentences), num_poolings);
      break;
    } catch (const std::bad_alloc&) {
      for (auto& pass : passes_) pass.reset();
      if (tokens <= std::max(longest, kFewestPassTokens))
        throw std::runtime_error(
            runtime_->device_name() + " has no room for " + std::to_string(most_tokens) +
            " tokens at a time: free memory of it, lower max_seq_length, or use device='cpu'");
    }
  }

  size_t next = 0;
  try {
    for (const Chunk& chunk : chunks) {
      if (should_stop && should_stop()) break;
      Pass& pass = *passes_[next++ % passes_.size()];
      finish(pass, batch, outputs);
      start(pass, batch, outputs, chunk);
    }
    // Also of a call that stops: a pass must be idle before its buffers serve the next call.
    for (auto& pass : passes_) finish(*pass, batch, outputs);
  } catch (...) {
    for (auto& pass : passes_) pass.reset();
    throw;
  }
  return next == chunks.size();
}

}  // namespace minifuse
