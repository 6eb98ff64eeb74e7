// Products of small matrices in the core's own cache, and the packing that they read.
//
// A product's right side is packed so that one vector holds one unit of 16 columns; its left side is broadcast unit by
// unit.
#pragma once

#include "parallel.h"
#include "tiles.h"

namespace {

#if defined(__AVX512F__)
constexpr int ACCUMULATORS = 24;  // of 32 vector registers
#else
constexpr int ACCUMULATORS = 4;  // a vector of ours is two or four of the processor's
#endif

// c[rows][columns] (+)= a b.  a's unit (row, step) lies at a[row * a_row + step * a_step]; b's at
// b[step * b_step + column]. `columns` is a multiple of 16.
template <class T, int M, int N>
inline void tile(const uint32_t* a, long a_row, long a_step, const uint32_t* b, long b_step, long steps, float* c,
                 long c_row, bool add) {
  Floats sums[M][N];
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) sums[m][n] = add ? load<Floats>(c + m * c_row + n * LANES) : Floats{};
  for (long step = 0; step < steps; step++) {
    Units right[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; n++) right[n] = load<Units>(b + step * b_step + n * LANES);
#pragma GCC unroll 32
    for (int m = 0; m < M; m++) {
      Units left = spread(a[m * a_row + step * a_step]);
#pragma GCC unroll 8
      for (int n = 0; n < N; n++) sums[m][n] = T::dot(sums[m][n], left, right[n]);
    }
  }
  for (int m = 0; m < M; m++)
    for (int n = 0; n < N; n++) store(c + m * c_row + n * LANES, sums[m][n]);
}

// The last rows, fewer than fill a tile: a tile of just that height, because a lower one waits for its own sums.
template <class T, int N, int M>
inline void last_rows(long rows, const uint32_t* a, long a_row, long a_step, const uint32_t* b, long b_step, long steps,
                      float* c, long c_row, bool add) {
  if constexpr (M > 0) {
    if (rows == M)
      tile<T, M, N>(a, a_row, a_step, b, b_step, steps, c, c_row, add);
    else
      last_rows<T, N, M - 1>(rows, a, a_row, a_step, b, b_step, steps, c, c_row, add);
  }
}

template <class T, int N>
inline void rows_of_tiles(long rows, const uint32_t* a, long a_row, long a_step, const uint32_t* b, long b_step,
                          long steps, float* c, long c_row, bool add) {
  constexpr int M = ACCUMULATORS / std::max(N, 2);
  for (; rows >= M; rows -= M, a += M * a_row, c += M * c_row)
    tile<T, M, N>(a, a_row, a_step, b, b_step, steps, c, c_row, add);
  last_rows<T, N, M - 1>(rows, a, a_row, a_step, b, b_step, steps, c, c_row, add);
}

template <class T>
void product(long rows, long columns, long steps, const uint32_t* a, long a_row, long a_step, const uint32_t* b,
             long b_step, float* c, long c_row, bool add = false) {
  if (by_tiles<T>() && a_step == 1 && steps % TILE == 0) {
    product_by_tiles(rows, columns, steps, a, a_row, b, b_step, c, c_row, add);
    return;
  }
  long column = 0;
  for (; column + 4 * LANES <= columns; column += 4 * LANES)
    rows_of_tiles<T, 4>(rows, a, a_row, a_step, b + column, b_step, steps, c + column, c_row, add);
  for (; column + 2 * LANES <= columns; column += 2 * LANES)
    rows_of_tiles<T, 2>(rows, a, a_row, a_step, b + column, b_step, steps, c + column, c_row, add);
  for (; column < columns; column += LANES)
    rows_of_tiles<T, 1>(rows, a, a_row, a_step, b + column, b_step, steps, c + column, c_row, add);
}

// 16 x 16 units, transposed: four rounds of exchanging lanes at distance 1, 2, 4, 8.
template <int DISTANCE>
inline void exchange(Units (&rows)[16]) {
  Ints low, high;
  for (int lane = 0; lane < 16; lane++) {
    low[lane] = lane & DISTANCE ? 16 + lane - DISTANCE : lane;
    high[lane] = lane & DISTANCE ? 16 + lane : lane + DISTANCE;
  }
#pragma GCC unroll 16
  for (int row = 0; row < 16; row++) {
    if (row & DISTANCE) continue;
    Units upper = rows[row], lower = rows[row + DISTANCE];
#if defined(__clang__)
    Units first, second;
    for (int lane = 0; lane < 16; lane++) {
      first[lane] = lane & DISTANCE ? lower[lane - DISTANCE] : upper[lane];
      second[lane] = lane & DISTANCE ? lower[lane] : upper[lane + DISTANCE];
    }
    rows[row] = first, rows[row + DISTANCE] = second;
#else
    rows[row] = __builtin_shuffle(upper, lower, (Units)low);
    rows[row + DISTANCE] = __builtin_shuffle(upper, lower, (Units)high);
#endif
  }
}

// Pack x (length rows of `units`) for products that sum over the head: to[unit][row], rows padded with zeros to 16.
void pack_by_head(const uint32_t* x, long x_row, long length, long units, uint32_t* to, long to_row) {
  for (long row = 0; row < length; row += 16) {
    long rows = std::min(16l, length - row);
    for (long unit = 0; unit < units; unit += 16) {
      long width = std::min(16l, units - unit);
      Units block[16] = {};
      for (long r = 0; r < rows; r++) {
        const uint32_t* from = x + (row + r) * x_row + unit;
        if (width == 16)
          block[r] = load<Units>(from);
        else
          std::memcpy(&block[r], from, width * 4);
      }
      exchange<1>(block), exchange<2>(block), exchange<4>(block), exchange<8>(block);
      for (long u = 0; u < width; u++) store(to + (unit + u) * to_row + row, block[u]);
    }
  }
}

// Pack x for products that sum over positions: to[row / PER_UNIT][number], each unit one column of PER_UNIT rows.
void pack_by_position(const float* x, long x_row, long length, long head, uint32_t* to) {
  for (long row = 0; row < length; row++) std::memcpy(to + row * head, x + row * x_row, head * 4);
}
void pack_by_position(const uint16_t* x, long x_row, long length, long head, uint32_t* to) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  for (long row = 0; row < length; row += 2)
    for (long n = 0; n < head; n += LANES) {
      Units first = __builtin_convertvector(load<Halves>(x + row * x_row + n), Units), second{};
      if (row + 1 < length) second = __builtin_convertvector(load<Halves>(x + (row + 1) * x_row + n), Units);
      store(to + row / 2 * head + n, first | (second << 16));
    }
}

// Turn x (length rows of `head` numbers) over: to[number][row], rows beyond the length are zeros up to `to_row`.
inline void narrow(Units x, float* to, float*) { store(to, x); }
inline void narrow(Units x, uint16_t* even, uint16_t* odd) {
  typedef uint16_t Halves __attribute__((vector_size(32)));
  store(even, __builtin_convertvector(x & 0xffff, Halves));
  store(odd, __builtin_convertvector(x >> 16, Halves));
}
template <class Number>
void turn(const Number* x, long x_row, long length, long head, Number* to, long to_row) {
  constexpr long PER_UNIT = 4 / sizeof(Number);
  static thread_local Buffer<uint32_t> there;
  const long units = head / PER_UNIT;
  uint32_t* by_head = there.of(units * to_row);
  std::memset(by_head, 0, units * to_row * 4);
  pack_by_head((const uint32_t*)x, x_row / PER_UNIT, length, units, by_head, to_row);
  for (long unit = 0; unit < units; unit++)
    for (long row = 0; row < to_row; row += LANES)
      narrow(load<Units>(by_head + unit * to_row + row), to + unit * PER_UNIT * to_row + row,
             to + (unit * PER_UNIT + PER_UNIT - 1) * to_row + row);
}

// Write x (`head` rows of numbers, one a position) turned over: a row of `head` numbers a position.
template <class T>
void put_turned(const float* x, long x_row, long length, long head, typename T::Number* to, long to_row) {
  for (long row = 0; row < length; row += LANES)
    for (long n = 0; n < head; n += LANES) {
      Units block[16];
      for (long r = 0; r < LANES; r++) block[r] = load<Units>(x + (n + r) * x_row + row);
      exchange<1>(block), exchange<2>(block), exchange<4>(block), exchange<8>(block);
      for (long r = 0; r < std::min(LANES, length - row); r++) T::put(to + (row + r) * to_row + n, (Floats)block[r]);
    }
}

// Write PER_UNIT rows of scores as units for a product that sums over rows.
inline void put_units(const Fp32&, uint32_t* to, Floats first, Floats) { store(to, first); }
inline void put_units(const Bf16&, uint32_t* to, Floats first, Floats second) {
#if defined(__AVX512BF16__)
  typedef uint16_t Halves __attribute__((vector_size(64)));
  Halves both;
  __m512bh converted = _mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
  std::memcpy(&both, &converted, sizeof both);
  const Halves woven = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  store(to, (Units)_mm512_permutexvar_epi16((__m512i)woven, (__m512i)both));
#else
  store(to, (Bf16::rounded(first) >> 16) | (Bf16::rounded(second) & 0xffff0000u));
#endif
}

}  // namespace
