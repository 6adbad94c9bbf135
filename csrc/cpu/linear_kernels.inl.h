// Definitions shared by the linear kernels of every weight format. The vec_*.h header comes before
// it.

#define MINIFUSE_INLINE __attribute__((always_inline))

constexpr int64_t kPanelColumns = 16 * kTileVectors;
static_assert(kTileRows <= kMaxTileRows && kPanelColumns <= kMaxPanelColumns);

#include "cpu/math.inl.h"
#include "cpu/layernorm.inl.h"
#include "cpu/micro_kernel.inl.h"
#include "cpu/linear.inl.h"
