// The linear layers in int8 and what they stand on: all that an instruction set adds which is
// better at integers only. The vec_*.h and dot_*.h headers come before it.

#define MINIFUSE_INLINE __attribute__((always_inline))

constexpr int64_t kPanelColumns = 16 * kTileVectors;
static_assert(kTileRows <= kMaxTileRows && kPanelColumns <= kMaxPanelColumns);

#include "cpu/math.inl.h"
#include "cpu/layernorm.inl.h"
#include "cpu/micro_kernel.inl.h"
#include "cpu/linear.inl.h"
#include "cpu/int8.inl.h"
