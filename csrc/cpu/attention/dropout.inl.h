// y = x * keep / (1 - p), keep drawn by a hash of the element's number: the same draw again wherever
// and in whatever pieces it is asked for, with no state and nothing stored (what gradient caching
// and a resumed training replay).
//
// lowbias32 (Wellons 2018) of the number, mixed with the seed before and between: an element is
// dropped where 32 bits fall below p 2^32.

inline uint32_t hash_of(uint32_t number, uint32_t seed_low, uint32_t seed_high) {
  uint32_t h = number ^ seed_low;
  h = (h ^ h >> 16) * 0x7feb352du;
  h = (h ^ h >> 15 ^ seed_high) * 0x846ca68bu;
  return h ^ h >> 16;
}

// Elements first .. first + n - 1 of what this seed draws; x may be y.
void dropout(const float* x, float* y, int64_t n, uint64_t seed, uint64_t first, float p) {
  const float scale = 1.0f / (1.0f - p);
  const uint32_t threshold = static_cast<uint32_t>(p * 4294967040.0f);
  const uint32_t low = static_cast<uint32_t>(seed);
  for (int64_t i = 0; i < n;) {
    // Numbers beyond 32 bits change the seed: blocks that end where the lower half wraps.
    const uint64_t number = first + static_cast<uint64_t>(i);
    const uint32_t high = static_cast<uint32_t>(seed >> 32) + static_cast<uint32_t>(number >> 32);
    const uint64_t left = (uint64_t{1} << 32) - (number & 0xFFFFFFFFu);
    const int64_t count = n - i < static_cast<int64_t>(left) ? n - i : static_cast<int64_t>(left);
    const uint32_t begin = static_cast<uint32_t>(number);
    for (int64_t j = 0; j < count; ++j) {
      const uint32_t h = hash_of(begin + static_cast<uint32_t>(j), low, high);
      y[i + j] = h < threshold ? 0.0f : x[i + j] * scale;
    }
    i += count;
  }
}
