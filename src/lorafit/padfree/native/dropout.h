// Dropout whose mask is a function of (seed, row, column), so that forward and backward, in whatever order, see one.
#pragma once

#include "numbers.h"

namespace {

inline uint32_t mix(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}
inline Units mix(Units x) {
  x = (x ^ (x >> 16)) * 0x85ebca6bu;
  x = (x ^ (x >> 13)) * 0xc2b2ae35u;
  return x ^ (x >> 16);
}
struct Dropout {
  uint32_t seed, threshold;  // an element goes when its hash is below the threshold
  float scale;               // 1 / (1 - share)
  static Dropout of(uint64_t seed, float share) {
    uint32_t threshold = (uint32_t)std::min(4294967295.0, (double)share * 4294967296.0);
    return {mix((uint32_t)seed ^ mix((uint32_t)(seed >> 32))), threshold, 1.0f / (1.0f - share)};
  }
  uint32_t row_key(long row, long part) const { return mix(seed + mix((uint32_t)row * 0x9e3779b9u + (uint32_t)part)); }
  // 1 / (1 - share) where the element stays, 0 where it goes.
  Floats factors(uint32_t key, long column) const {
    Units columns = Units{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (uint32_t)column;
    Ints stays = mix(columns * 0x9e3779b9u + key) >= threshold;
    return (Floats)(stays & (Ints)spread(scale));
  }
  // The same for one column of 16 rows.
  Floats factors_of_rows(long row, long part, long column) const {
    Units rows = Units{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (uint32_t)row;
    Units keys = mix(mix(rows * 0x9e3779b9u + (uint32_t)part) + seed);
    Ints stays = mix(keys + (uint32_t)column * 0x9e3779b9u) >= threshold;
    return (Floats)(stays & (Ints)spread(scale));
  }
};

}  // namespace
