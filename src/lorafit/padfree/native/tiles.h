// Products of bf16 on AMX's tiles of 16 x 16 units, where the processor has them and Linux lets us.
#pragma once

#include "numbers.h"
#if defined(__AMX_BF16__) && defined(__AVX512F__) && defined(__linux__)
#define LORAFIT_TILES
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

constexpr long TILE = 16;  // rows, and units a row

#if defined(LORAFIT_TILES)
inline bool tiles_are_there() {
  constexpr int REQUEST = 0x1023, TILE_DATA = 18;  // arch_prctl's ARCH_REQ_XCOMP_PERM for XFEATURE_XTILEDATA
  static const bool there = syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
  return there;
}

struct alignas(64) Shapes {
  uint8_t palette, first_row, unused[14];
  uint16_t bytes_a_row[16];
  uint8_t rows[16];
};

// GCC's intrinsics do not say all of what they read and write in memory: nothing moves past this.
inline void in_order() { asm volatile("" ::: "memory"); }

// Give tiles 0, 1 and 4, the sums and the left side of one block, so many rows; all others are whole.
inline void shape_tiles(long rows) {
  Shapes shapes{};
  shapes.palette = 1;
  for (int n = 0; n < 8; n++) shapes.bytes_a_row[n] = TILE * 4, shapes.rows[n] = TILE;
  shapes.rows[0] = shapes.rows[1] = shapes.rows[4] = rows;
  in_order();
  _tile_loadconfig(&shapes);
  in_order();
}

// The tiles are ours while this lives; then they are again what another library left there.
class Tiles {
  Shapes before;
  bool wanted;

 public:
  explicit Tiles(bool wanted) : wanted(wanted) {
    if (!wanted) return;
    _tile_storeconfig(&before);
    in_order();
    shape_tiles(TILE);
  }
  ~Tiles() {
    in_order();
    if (wanted) _tile_loadconfig(&before);
  }
};

// Tiles 0 to 3 hold the sums of M x N blocks, 4 and 5 what is left, 6 and 7 what is right.
template <int M, int N>
inline void block_of_tiles(long steps, const uint32_t* a, long a_row, const uint32_t* b, long b_step, float* c, long c_row,
                           bool add) {
  float* lower = c + TILE * c_row;
  if (add) {
    _tile_loadd(0, c, c_row * 4);
    if (N > 1) _tile_loadd(1, c + TILE, c_row * 4);
    if (M > 1) _tile_loadd(2, lower, c_row * 4);
    if (M > 1 && N > 1) _tile_loadd(3, lower + TILE, c_row * 4);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (long step = 0; step < steps; step += TILE) {
    _tile_loadd(4, a + step, a_row * 4);
    _tile_loadd(6, b + step * b_step, b_step * 4);
    _tile_dpbf16ps(0, 4, 6);
    if (N > 1) _tile_loadd(7, b + step * b_step + TILE, b_step * 4);
    if (N > 1) _tile_dpbf16ps(1, 4, 7);
    if (M > 1) _tile_loadd(5, a + TILE * a_row + step, a_row * 4);
    if (M > 1) _tile_dpbf16ps(2, 5, 6);
    if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, c_row * 4);
  if (N > 1) _tile_stored(1, c + TILE, c_row * 4);
  if (M > 1) _tile_stored(2, lower, c_row * 4);
  if (M > 1 && N > 1) _tile_stored(3, lower + TILE, c_row * 4);
}

template <int M>
inline void row_of_tiles(long columns, long steps, const uint32_t* a, long a_row, const uint32_t* b, long b_step, float* c,
                         long c_row, bool add) {
  long column = 0;
  for (; column + 2 * TILE <= columns; column += 2 * TILE)
    block_of_tiles<M, 2>(steps, a, a_row, b + column, b_step, c + column, c_row, add);
  if (column < columns) block_of_tiles<M, 1>(steps, a, a_row, b + column, b_step, c + column, c_row, add);
}

// As `product`, with `columns` and `steps` multiples of 16.
inline void product_by_tiles(long rows, long columns, long steps, const uint32_t* a, long a_row, const uint32_t* b,
                             long b_step, float* c, long c_row, bool add) {
  in_order();
  for (; rows >= 2 * TILE; rows -= 2 * TILE, a += 2 * TILE * a_row, c += 2 * TILE * c_row)
    row_of_tiles<2>(columns, steps, a, a_row, b, b_step, c, c_row, add);
  for (; rows > 0; rows -= TILE, a += TILE * a_row, c += TILE * c_row) {
    if (rows < TILE) shape_tiles(rows);
    row_of_tiles<1>(columns, steps, a, a_row, b, b_step, c, c_row, add);
    if (rows < TILE) shape_tiles(TILE);
  }
  in_order();
}
#else
inline bool tiles_are_there() { return false; }
struct Tiles {
  explicit Tiles(bool) {}
};
inline void product_by_tiles(long, long, long, const uint32_t*, long, const uint32_t*, long, float*, long, bool) {}
#endif

template <class T>
inline bool by_tiles() {
  return T::PER_UNIT == 2 && tiles_are_there();
}

}  // namespace
