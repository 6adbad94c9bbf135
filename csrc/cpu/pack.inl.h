// Weights into the micro-kernel's order, once, at load.
//
//   weight [N, K] row-major (out, in)      packed [ceil(N / NR), K, NR]
//
//   panel p:   k = 0:  w[pNR][0] w[pNR+1][0] ... w[pNR+NR-1][0]
//              k = 1:  w[pNR][1] ...                              NR consecutive floats a step,
//              ...                                                read front to back once a tile
//
// Columns past N are zeros, so that the kernel needs no tail in its inner loop.

void pack_weight(const float* weight, int64_t ldw, int64_t N, int64_t K, float* packed,
                 int64_t panel_begin, int64_t panel_end) {
  alignas(64) const float zeros[16] = {};
  for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
    float* out = packed + panel * K * kPanelColumns;
    for (int64_t group = 0; group < kPanelColumns; group += 16) {
      const int64_t column = panel * kPanelColumns + group;
      int64_t k = 0;
      for (; k + 16 <= K; k += 16) {
        const float* rows[16];
        for (int64_t i = 0; i < 16; ++i)
          rows[i] = column + i < N ? weight + (column + i) * ldw + k : zeros;
        transpose_16x16(rows, out + k * kPanelColumns + group, kPanelColumns);
      }
      for (; k < K; ++k)
        for (int64_t i = 0; i < 16; ++i)
          out[k * kPanelColumns + group + i] = column + i < N ? weight[(column + i) * ldw + k] : 0;
    }
  }
}
