// The CUDA kernels and their encoder behind a C interface for ctypes (tests/cuda_library.py), on
// whatever device the library is linked with: the emulator or a real one. Inputs and outputs are the
// host's; every buffer on the device has exactly its size. A function returns 0, or 1 with the text
// in cuda_error().

#include <chrono>
#include <memory>
#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "model/cuda/cuda_encoder.h"

namespace minifuse::cuda {

// The device that the tests run on, with at most so many bytes where it can be limited.
std::shared_ptr<Runtime> open_test_device(size_t most_bytes);

namespace {

constexpr size_t kAllBytes = size_t{1} << 30;
constexpr const char* kElements[] = {"float32", "bfloat16", "float16"};

std::string error_text, lines;
int num_repeats = 0;
double last_seconds = 0.0;

template <typename F>
int guarded(F f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    error_text = error.what();
    return 1;
  }
}

// One launch: buffers go to the device and come back.
class Session {
 public:
  explicit Session(int element)
      : runtime_(open_test_device(kAllBytes)),
        kernels_(runtime_->kernels(kElements[element])),
        stream_(runtime_->create_stream()) {}
  ~Session() { runtime_->destroy_stream(stream_); }

  const Kernels& kernels() const { return kernels_; }
  Stream stream() const { return stream_; }

  // num_rows rows of `width` elements of T, `stride` apart, to the device; null stays null.
  template <typename P>
  void in(P*& data, int64_t num_rows, int64_t stride, int64_t width, int64_t size,
          const char* name) {
    if (data == nullptr) return;
    const size_t size_bytes = bytes_of(num_rows, stride, width, size);
    void* memory = place(data, size_bytes, name);
    runtime_->synchronize(stream_);
    if (MemoryRules* rules = runtime_->memory_rules()) rules->protect(memory);
    data = static_cast<P*>(memory);
  }
  // The same; it is copied back by run().
  template <typename P>
  void out(P*& data, int64_t num_rows, int64_t stride, int64_t width, int64_t size,
           const char* name) {
    const size_t size_bytes = bytes_of(num_rows, stride, width, size);
    void* memory = place(data, size_bytes, name);
    results_.push_back({data, memory, size_bytes});
    data = static_cast<P*>(memory);
  }
  void element_in(const void*& data, int64_t num_rows, int64_t stride, int64_t width,
                  const char* name) {
    in(data, num_rows, stride, width, kernels_.element_bytes, name);
  }
  void floats_in(const float*& data, int64_t count, const char* name) {
    in(data, 1, 0, count, sizeof(float), name);
  }

  // Launches, and copies the results back; then, where repeats are asked for, times them.
  template <typename F>
  void run(F launch) {
    launch();
    for (const Result& result : results_)
      runtime_->download(result.host, result.device, result.size_bytes, stream_);
    runtime_->synchronize(stream_);
    if (num_repeats == 0) return;
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < num_repeats; ++i) launch();
    runtime_->synchronize(stream_);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    last_seconds = elapsed.count() / num_repeats;
  }

 private:
  struct Result {
    void* host;
    void* device;
    size_t size_bytes;
  };

  static size_t bytes_of(int64_t num_rows, int64_t stride, int64_t width, int64_t size) {
    return num_rows <= 0 ? 0 : static_cast<size_t>(((num_rows - 1) * stride + width) * size);
  }
  void* place(const void* data, size_t size_bytes, const char* name) {
    void* memory = runtime_->allocate(size_bytes, name);
    if (memory == nullptr) throw std::runtime_error("no memory for a test");
    buffers_.emplace_back(*runtime_, memory, size_bytes);
    runtime_->upload(memory, data, size_bytes, stream_);
    return memory;
  }

  std::shared_ptr<Runtime> runtime_;
  const Kernels& kernels_;
  Stream stream_;
  std::vector<DeviceBuffer> buffers_;
  std::vector<Result> results_;
};

void matrix_in(Session& s, LinearParams& p) {
  s.element_in(p.x, p.M, p.ldx, p.K, "x");
  s.element_in(p.weight, p.N, p.K, p.K, "weight");
  s.floats_in(p.bias, p.N, "bias");
  s.out(p.y, p.M, p.ldy, p.N, s.kernels().element_bytes, "y");
}

void norm_in(Session& s, NormParams& p, int64_t M, int64_t H) {
  s.element_in(p.residual, M, p.ldr, H, "residual");
  s.floats_in(p.gamma, H, "gamma");
  s.floats_in(p.beta, H, "beta");
}

}  // namespace

extern "C" {

// The launches that follow are each repeated so often, and the seconds of one kept.
void cuda_set_repeats(int repeats) { num_repeats = repeats; }
double cuda_last_seconds() { return last_seconds; }

const char* cuda_error() { return error_text.c_str(); }

int cuda_linear(int element, const LinearParams* params) {
  return guarded([&] {
    Session s(element);
    LinearParams p = *params;
    matrix_in(s, p);
    s.run([&] { s.kernels().linear(s.stream(), p); });
  });
}

int cuda_linear_residual_layer_norm(int element, const LinearNormParams* params) {
  return guarded([&] {
    Session s(element);
    LinearNormParams p = *params;
    matrix_in(s, p.linear);
    norm_in(s, p.norm, p.linear.M, p.linear.N);
    s.run([&] { s.kernels().linear_residual_layer_norm(s.stream(), p); });
  });
}

int cuda_ffn_residual_layer_norm(int element, const FfnParams* params) {
  return guarded([&] {
    Session s(element);
    FfnParams p = *params;
    norm_in(s, p.norm, p.M, p.H);
    s.element_in(p.x, p.M, p.ldx, p.H, "x");
    s.element_in(p.w1, p.F, p.H, p.H, "w1");
    s.floats_in(p.b1, p.F, "b1");
    s.element_in(p.w2, p.H, p.F, p.F, "w2");
    s.floats_in(p.b2, p.H, "b2");
    s.out(p.y, p.M, p.ldy, p.H, s.kernels().element_bytes, "y");
    s.run([&] { s.kernels().ffn_residual_layer_norm(s.stream(), p); });
  });
}

int cuda_layer_norm(int element, const RowNormParams* params) {
  return guarded([&] {
    Session s(element);
    RowNormParams p = *params;
    s.element_in(p.x, p.M, p.ldx, p.H, "x");
    norm_in(s, p.norm, p.M, p.H);
    s.out(p.y, p.M, p.ldy, p.H, s.kernels().element_bytes, "y");
    s.run([&] { s.kernels().layer_norm(s.stream(), p); });
  });
}

int cuda_attention(int element, const AttentionParams* params, int64_t num_queries,
                   int64_t num_keys) {
  return guarded([&] {
    Session s(element);
    AttentionParams p = *params;
    const int64_t H = int64_t{p.num_heads} * p.head_dim;
    s.element_in(p.q, num_queries, p.ldq, H, "q");
    s.element_in(p.k, num_keys, p.ldk, H, "k");
    s.element_in(p.v, num_keys, p.ldv, H, "v");
    if (p.mask) s.in(p.mask, 1, 0, num_keys, 1, "mask");
    s.in(p.tiles, 1, 0, p.num_tiles, sizeof(AttentionTile), "tiles");
    s.out(p.out, num_queries, p.ldout, H, s.kernels().element_bytes, "out");
    s.run([&] { s.kernels().attention(s.stream(), p); });
  });
}

int cuda_embed_layer_norm(int element, const EmbedParams* params, int64_t vocab_size,
                          int64_t num_positions) {
  return guarded([&] {
    Session s(element);
    EmbedParams p = *params;
    s.in(p.ids, 1, 0, p.M, sizeof(int32_t), "ids");
    s.in(p.positions, 1, 0, p.M, sizeof(int32_t), "positions");
    s.element_in(p.word, vocab_size, p.H, p.H, "word");
    s.element_in(p.position, num_positions, p.H, p.H, "position");
    s.floats_in(p.gamma, p.H, "gamma");
    s.floats_in(p.beta, p.H, "beta");
    s.out(p.y, p.M, p.ldy, p.H, s.kernels().element_bytes, "y");
    s.run([&] { s.kernels().embed_layer_norm(s.stream(), p); });
  });
}

int cuda_pool(int element, const PoolParams* params, int64_t total_tokens) {
  return guarded([&] {
    Session s(element);
    PoolParams p = *params;
    s.element_in(p.x, total_tokens, p.ldx, p.H, "x");
    s.in(p.cu_seqlens, 1, 0, p.batch + 1, sizeof(int32_t), "cu_seqlens");
    if (p.mask) s.in(p.mask, 1, 0, total_tokens, 1, "mask");
    s.out(p.y, p.batch, p.ldy, p.H, sizeof(float), "y");
    s.run([&] { s.kernels().pool(s.stream(), p); });
  });
}

// ---- the encoder -----------------------------------------------------------------------------

CudaEncoder* cuda_encoder_new(const char* element, const int64_t* shape, float eps, int activation,
                              int64_t most_bytes) {
  CudaEncoder* encoder = nullptr;
  guarded([&] {
    const ModelDescription description{.vocab_size = shape[0],
                                       .max_position_embeddings = shape[1],
                                       .hidden_size = shape[2],
                                       .num_hidden_layers = shape[3],
                                       .num_attention_heads = shape[4],
                                       .intermediate_size = shape[5],
                                       .type_vocab_size = shape[6],
                                       .layer_norm_eps = eps,
                                       .activation = static_cast<Activation>(activation)};
    encoder =
        new CudaEncoder(description, open_test_device(static_cast<size_t>(most_bytes)), element);
  });
  return encoder;
}

void cuda_encoder_delete(CudaEncoder* encoder) { delete encoder; }

// The slots of the weights, a line each: the name and the shape.
const char* cuda_encoder_slots(CudaEncoder* encoder) {
  lines.clear();
  for (const auto& [name, shape] : encoder->weights().shapes()) {
    lines += name;
    for (const int64_t extent : shape) lines += " " + std::to_string(extent);
    lines += "\n";
  }
  return lines.c_str();
}

int cuda_encoder_set(CudaEncoder* encoder, const char* name, const float* data,
                     const int64_t* shape, int num_dimensions) {
  return guarded([&] { encoder->weights().set(name, data, {shape, shape + num_dimensions}); });
}

int cuda_encoder_finish(CudaEncoder* encoder) {
  return guarded([&] { encoder->finish_weights(); });
}

// pooled: [batch, H] by mean, or null for the tokens' rows.
int cuda_encoder_encode(CudaEncoder* encoder, const int32_t* ids, const int32_t* cu_seqlens,
                        int64_t batch, int64_t max_sentences, float* pooled, float* rows) {
  return guarded([&] {
    Outputs outputs;
    outputs.pooled = pooled;
    outputs.token_embeddings = rows;
    outputs.poolings = {Pooling::kMean};
    encoder->encode({ids, cu_seqlens, batch, cu_seqlens[batch]}, outputs, max_sentences, nullptr);
  });
}

}  // extern "C"

}  // namespace minifuse::cuda
