// A step of int8.inl.h in plain integers: the meaning of the others.

struct weights64 {
  int8_t code[64];
};

inline weights64 load_weights(const int8_t* p) {
  weights64 w;
  __builtin_memcpy(w.code, p, 64);
  return w;
}
// acc[i] += sum over four codes of x times the four weights of column i.
inline void dot(i32x16& acc, i32x16 x, weights64 weights) {
  uint8_t codes[64];
  __builtin_memcpy(codes, x.lane, 64);
  for (int i = 0; i < 64; ++i) acc.lane[i / 4] += codes[i] * weights.code[i];
}
