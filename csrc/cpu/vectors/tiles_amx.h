// The tile registers of AMX (Intel's manual, volume 1, chapter 18): eight of 16 rows by 64 bytes, and
// what tiles.inl.h does with them. GCC's intrinsics take the number of a register as it is spelled;
// these take it as a constant of a template.

// All eight registers whole: a tile of fewer rows is computed whole and stored in part.
inline void configure_tiles() {
  struct alignas(64) {
    uint8_t palette, first_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } config = {};
  config.palette = 1;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  __asm__ volatile("ldtilecfg %0" ::"m"(config));
}
// The operating system need not save what is released.
inline void release_tiles() { __asm__ volatile("tilerelease"); }

template <int kTile>
inline void zero_tile() {
  __asm__ volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Sixteen rows of 64 bytes, `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* rows, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(rows), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* rows, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(rows), "r"(stride), "i"(kTile)
                   : "memory");
}
inline i32x16 load_sums(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
// sums[m][n] += the four codes k of row m times the four weights k of column n, for all k: a row of
// weights has its sixteen columns side by side.
template <int kSums, int kCodes, int kWeights>
inline void dot_codes() {
  __asm__ volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kCodes), "i"(kWeights));
}
// The same with pairs of bfloat16, summed in float32.
template <int kSums, int kValues, int kWeights>
inline void dot_pairs() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kValues),
                   "i"(kWeights));
}
