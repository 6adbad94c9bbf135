// Maps of matrices for TMA, made on the host: boxes of 64 or 32 columns, swizzled as ptx.cuh says.
#pragma once

#include <stdexcept>
#include <string>

#include "common/check.h"
#include "cuda/hopper/boxes.cuh"

#if defined(__CUDACC__)
#include <cuda_runtime.h>
#endif

namespace minifuse::cuda {

#if defined(__CUDACC__)
inline CUtensorMapDataType type_of_map(Bfloat16) { return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16; }
inline CUtensorMapDataType type_of_map(Half) { return CU_TENSOR_MAP_DATA_TYPE_FLOAT16; }

// A function of the driver, asked for at run time: nothing links with it.
inline auto tensor_map_encoder() {
  static const auto encode = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
#if CUDART_VERSION >= 12050
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function,
                                                               12000, cudaEnableDefault, &found);
#else
    const cudaError_t error =
        cudaGetDriverEntryPoint("cuTensorMapEncodeTiled", &function, cudaEnableDefault, &found);
#endif
    if (error != cudaSuccess || found != cudaDriverEntryPointSuccess)
      throw std::runtime_error("the driver has no cuTensorMapEncodeTiled");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
  }();
  return encode;
}
#endif

// Returns the map of data [num_rows, num_columns], rows `stride` elements apart; box_rows <= 256,
// box_columns 64 or 32.
template <typename T>
ptx::TensorMap make_tensor_map(T type, const void* data, int num_rows, int num_columns,
                               int64_t stride, int box_rows, int box_columns = kBoxColumns) {
#if defined(__CUDACC__)
  ptx::TensorMap map;
  const cuuint64_t sizes[2] = {static_cast<cuuint64_t>(num_columns),
                               static_cast<cuuint64_t>(num_rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(stride) * sizeof(T)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(box_columns),
                             static_cast<cuuint32_t>(box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = tensor_map_encoder()(
      &map, type_of_map(type), 2, const_cast<void*>(data), sizes, strides, box, steps,
      CU_TENSOR_MAP_INTERLEAVE_NONE,
      box_columns == 64 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS)
    throw std::runtime_error("cuTensorMapEncodeTiled: " + std::to_string(result) + " for " +
                             std::to_string(num_rows) + " rows of " + std::to_string(num_columns) +
                             ", " + std::to_string(stride) + " apart");
  return map;
#else
  static_cast<void>(type);
  const int64_t stride_bytes = stride * static_cast<int64_t>(sizeof(T));
  check(reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride_bytes % 16 == 0 && num_rows > 0 &&
            box_rows <= 256,
        "a map of ", num_rows, " rows ", stride_bytes, " bytes apart");
  return {static_cast<const std::byte*>(data),
          num_columns,
          num_rows,
          stride_bytes,
          box_columns,
          box_rows};
#endif
}

}  // namespace minifuse::cuda
