// The CUDA kernels run by the emulator, behind a C interface for ctypes (tests/cuda_emulator.py).
// Every buffer is registered with its exact size, so that a kernel which reads or writes past it
// faults. A function returns 0, or 1 with the text in cuda_error().

#include <dlfcn.h>

#include <string>

#include "cuda/table.cuh"

namespace minifuse::cuda {

namespace {

std::string error_text, instances_text;
std::map<std::string, int64_t> instruction_counts;

template <typename F>
int guarded(F f) {
  emulator::Device device;
  int status = 0;
  try {
    f(device);
  } catch (const std::exception& error) {
    error_text = error.what();
    status = 1;
  }
  instruction_counts = device.counts();
  return status;
}

size_t bytes_of(int64_t num_rows, int64_t stride, int64_t width, int64_t size) {
  return num_rows <= 0 ? 0 : static_cast<size_t>(((num_rows - 1) * stride + width) * size);
}

void allow_matrix(emulator::Device& device, const LinearParams& p, int64_t size) {
  device.allow(p.x, bytes_of(p.M, p.ldx, p.K, size), "x", true);
  device.allow(p.weight, bytes_of(p.N, p.K, p.K, size), "weight", true);
  if (p.bias) device.allow(p.bias, bytes_of(1, 0, p.N, 4), "bias", true);
  device.allow(p.y, bytes_of(p.M, p.ldy, p.N, size), "y", false);
}

void allow_norm(emulator::Device& device, const NormParams& p, int64_t M, int64_t H, int64_t size) {
  device.allow(p.residual, bytes_of(M, p.ldr, H, size), "residual", true);
  device.allow(p.gamma, bytes_of(1, 0, H, 4), "gamma", true);
  device.allow(p.beta, bytes_of(1, 0, H, 4), "beta", true);
}

}  // namespace

extern "C" {

const char* cuda_error() { return error_text.c_str(); }

int64_t cuda_instruction_count(const char* name) { return instruction_counts[name]; }

// The mangled names of the kernels that have been launched, a line each.
const char* cuda_launched() {
  instances_text.clear();
  for (const void* kernel : emulator::launched_kernels()) {
    Dl_info info;
    if (dladdr(kernel, &info) && info.dli_sname) instances_text += std::string(info.dli_sname) + "\n";
  }
  return instances_text.c_str();
}

int cuda_linear(int table, const LinearParams* p) {
  return guarded([&](emulator::Device& device) {
    allow_matrix(device, *p, kTables[table].element_bytes);
    kTables[table].linear(&device, *p);
  });
}

int cuda_linear_residual_layer_norm(int table, const LinearNormParams* p) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes;
    allow_matrix(device, p->linear, size);
    allow_norm(device, p->norm, p->linear.M, p->linear.N, size);
    kTables[table].linear_residual_layer_norm(&device, *p);
  });
}

int cuda_ffn_residual_layer_norm(int table, const FfnParams* p) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes;
    allow_norm(device, p->norm, p->M, p->H, size);
    device.allow(p->x, bytes_of(p->M, p->ldx, p->H, size), "x", true);
    device.allow(p->w1, bytes_of(p->F, p->H, p->H, size), "w1", true);
    device.allow(p->b1, bytes_of(1, 0, p->F, 4), "b1", true);
    device.allow(p->w2, bytes_of(p->H, p->F, p->F, size), "w2", true);
    device.allow(p->b2, bytes_of(1, 0, p->H, 4), "b2", true);
    device.allow(p->y, bytes_of(p->M, p->ldy, p->H, size), "y", false);
    kTables[table].ffn_residual_layer_norm(&device, *p);
  });
}

int cuda_attention(int table, const AttentionParams* p, int64_t total_tokens) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes, H = int64_t{p->num_heads} * p->head_dim;
    device.allow(p->qkv, bytes_of(total_tokens, p->ldqkv, 3 * H, size), "qkv", true);
    device.allow(p->tiles, static_cast<size_t>(p->num_tiles) * sizeof(AttentionTile), "tiles", true);
    device.allow(p->out, bytes_of(total_tokens, p->ldout, H, size), "out", false);
    kTables[table].attention(&device, *p);
  });
}

int cuda_embed_layer_norm(int table, const EmbedParams* p, int64_t vocab_size,
                          int64_t num_positions) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes;
    device.allow(p->ids, bytes_of(1, 0, p->M, 4), "ids", true);
    device.allow(p->positions, bytes_of(1, 0, p->M, 4), "positions", true);
    device.allow(p->word, bytes_of(vocab_size, p->H, p->H, size), "word", true);
    device.allow(p->position, bytes_of(num_positions, p->H, p->H, size), "position", true);
    device.allow(p->gamma, bytes_of(1, 0, p->H, 4), "gamma", true);
    device.allow(p->beta, bytes_of(1, 0, p->H, 4), "beta", true);
    device.allow(p->y, bytes_of(p->M, p->ldy, p->H, size), "y", false);
    kTables[table].embed_layer_norm(&device, *p);
  });
}

int cuda_pool(int table, const PoolParams* p, int64_t total_tokens) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes;
    device.allow(p->x, bytes_of(total_tokens, p->ldx, p->H, size), "x", true);
    device.allow(p->cu_seqlens, bytes_of(1, 0, p->batch + 1, 4), "cu_seqlens", true);
    device.allow(p->y, bytes_of(p->batch, p->ldy, p->H, 4), "y", false);
    kTables[table].pool(&device, *p);
  });
}

int cuda_contrastive_loss(int table, const ContrastiveParams* p) {
  return guarded([&](emulator::Device& device) {
    const int64_t size = kTables[table].element_bytes;
    device.allow(p->a, bytes_of(p->batch, p->D, p->D, size), "a", true);
    device.allow(p->b, bytes_of(p->num_candidates, p->D, p->D, size), "b", true);
    device.allow(p->loss, bytes_of(1, 0, p->batch, 4), "loss", false);
    kTables[table].contrastive_loss(&device, *p);
  });
}

}  // extern "C"

}  // namespace minifuse::cuda
