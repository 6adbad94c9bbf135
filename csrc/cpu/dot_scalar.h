// A step of int8.inl.h in plain integers: the meaning of the others.

// Sixteen sums, or sixteen groups of four codes.
struct i32x16 {
  int32_t lane[16];
};
struct weights64 {
  int8_t code[64];
};

inline i32x16 zero_sums() { return {}; }
inline weights64 load_weights(const int8_t* p) {
  weights64 w;
  __builtin_memcpy(w.code, p, 64);
  return w;
}
inline i32x16 broadcast_codes(const uint8_t* p) {
  i32x16 r;
  for (int i = 0; i < 16; ++i) __builtin_memcpy(&r.lane[i], p, 4);
  return r;
}
// acc[i] += sum over four codes of x times the four weights of column i.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  uint8_t codes[64];
  __builtin_memcpy(codes, x.lane, 64);
  for (int i = 0; i < 64; ++i) acc.lane[i / 4] += codes[i] * weights.code[i];
}
inline f32x16 to_float(i32x16 v) {
  return map_lanes([&](int i) { return static_cast<float>(v.lane[i]); });
}
// Sixteen values in [0, 255] to the nearest integers, ties to even.
inline void store_codes(uint8_t* p, f32x16 v) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<uint8_t>((v.lane[i] + 12582912.0f) - 12582912.0f);
}
