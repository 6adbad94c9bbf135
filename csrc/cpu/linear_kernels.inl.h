// Definitions shared by the linear kernels of every weight format. The vec_*.h header comes before
// it.

#define MINIFUSE_INLINE __attribute__((always_inline))

// The register tile of float32, which attention and search use as well: MR rows (kTileRows of the
// vec_*.h header) by NR columns. A Format states its own, since one with other registers has another
// (tiles.inl.h).
constexpr int64_t kPanelColumns = 16 * kTileVectors;

struct VectorTile {
  static constexpr int kRows = kTileRows, kVectors = kTileVectors, kColumns = 16 * kTileVectors;
  static constexpr int kUnit = 1;
  static_assert(kRows <= kMaxTileRows && kColumns <= kMaxPanelColumns && 48 % kRows == 0);
  struct Registers {};
};

#include "cpu/rows/math.inl.h"
#include "cpu/rows/layernorm.inl.h"
#include "cpu/linear/micro_kernel.inl.h"
#include "cpu/linear/linear.inl.h"
