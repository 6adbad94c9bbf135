// The weights of a model in a device's memory: matrices and tables as rows of the element type, one
// after the other; biases and LayerNorm's in float32.
#pragma once

#include <string>
#include <vector>

#include "cuda/runtime.h"
#include "model/weights/weights.h"

namespace minifuse {

// The order of a matrix on the device: a panel is one row of "float32", "bfloat16" or "float16".
MatrixFormat row_major_format(const std::string& element);

struct CudaWeights {
  struct Matrix {
    cuda::DeviceBuffer weight, bias;
    int N, K;
  };
  struct Norm {
    cuda::DeviceBuffer gamma, beta;
  };
  struct Layer {
    Matrix qkv, out, ffn1, ffn2;
    Norm attention_norm, ffn_norm;
  };

  // Sends what `weights` holds, packed by `rows`. Throws where the device has no room.
  CudaWeights(const ModelDescription& description, const Weights& weights, const MatrixFormat& rows,
              cuda::Runtime& runtime);

  cuda::DeviceBuffer word;  // [vocab_size, H]
  cuda::DeviceBuffer position;  // [num_token_types * position_rows, H]
  cuda::DeviceBuffer embedding_gamma, embedding_beta;
  std::vector<Layer> layers;
};

}  // namespace minifuse
