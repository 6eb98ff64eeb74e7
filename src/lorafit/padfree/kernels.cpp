// Attention over sequences that lie one after the other, forward and backward, and dropout, for x86 and ARM CPUs.
//
// One task is one head of one sequence: its keys, values and scores stay in the core's own cache, and nothing is
// computed for padding. The backward pass makes the probabilities again from the row sums, as FlashAttention-2 does
// (Dao 2023, arXiv:2307.08691). Vectors are GCC's and clang's vector extensions, so that one text serves AVX2, AVX-512
// and NEON; bf16 products use AVX512-BF16 where the processor has it.
//
// Numbers are moved in units of 32 bits: two bf16 or one fp32. A product's right side is packed so that one vector
// holds one unit of 16 columns; its left side is broadcast unit by unit.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>
#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Units __attribute__((vector_size(64)));

constexpr long LANES = 16;
#if defined(__AVX512F__)
constexpr int ACCUMULATORS = 24;  // of 32 vector registers
#else
constexpr int ACCUMULATORS = 4;  // a vector of ours is two or four of the processor's
#endif
constexpr long KEYS = 96;  // keys at a time in the backward pass: a multiple of LANES; its scores stay in L2

template <class V>
inline V load(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
inline void store(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}
inline Units spread(uint32_t x) { return Units{} + x; }
inline Floats spread(float x) { return Floats{} + x; }
inline long round_up(long n, long step) { return (n + step - 1) / step * step; }

inline float total(Floats v) {
  float sum = 0;
  for (int lane = 0; lane < LANES; lane++) sum += v[lane];
  return sum;
}
inline float largest(Floats v) {
  float most = v[0];
  for (int lane = 1; lane < LANES; lane++) most = std::max(most, v[lane]);
  return most;
}

// 2^x for x <= 127; below -126 the answer is 2^-126, which is nothing beside a sum that holds a 1.
inline Floats exp2(Floats x) {
  x = x < -126.0f ? spread(-126.0f) : x;
  Floats shifted = x + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest whole number
  Floats whole = shifted - 12582912.0f;
  Floats f = x - whole;
  Floats y = spread(1.535336188319500e-4f);
  y = y * f + 1.339887440266574e-3f;
  y = y * f + 9.618437357674640e-3f;
  y = y * f + 5.550332471162809e-2f;
  y = y * f + 2.402264791363012e-1f;
  y = y * f + 6.931472028550421e-1f;
  y = y * f + 1.0f;
  Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return y * (Floats)power;
}

struct Fp32 {
  typedef float Number;
  static constexpr long PER_UNIT = 1;
  static Floats dot(Floats sum, Units a, Units b) { return sum + (Floats)a * (Floats)b; }
  static void put(Number* to, Floats v) { store(to, v); }
  static Floats get(const Number* from) { return load<Floats>(from); }
};

struct Bf16 {
  typedef uint16_t Number;
  static constexpr long PER_UNIT = 2;
  static Floats dot(Floats sum, Units a, Units b) {
#if defined(__AVX512BF16__)
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (Floats)(a << 16) * (Floats)(b << 16);
    return sum + (Floats)(a & 0xffff0000u) * (Floats)(b & 0xffff0000u);
#endif
  }
  static void put(Number* to, Floats v) {
#if defined(__AVX512BF16__)
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(to, &half, sizeof half);
#else
    typedef uint16_t Halves __attribute__((vector_size(32)));
    store(to, __builtin_convertvector(rounded(v) >> 16, Halves));
#endif
  }
  static Floats get(const Number* from) {
    typedef uint16_t Halves __attribute__((vector_size(32)));
    return (Floats)(__builtin_convertvector(load<Halves>(from), Units) << 16);
  }
  // The upper 16 bits are the number rounded to bf16, ties to even.
  static Units rounded(Floats v) {
    Units bits = (Units)v;
    return bits + 0x7fff + ((bits >> 16) & 1);
  }
};

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

// Write PER_UNIT rows of scores as units for a product that sums over rows.
inline void put_units(const Fp32&, uint32_t* to, Floats first, Floats) { store(to, first); }
inline void put_units(const Bf16&, uint32_t* to, Floats first, Floats second) {
  store(to, (Bf16::rounded(first) >> 16) | (Bf16::rounded(second) & 0xffff0000u));
}

// Dropout draws from a hash of (seed, row, column), so that forward and backward, in whatever order, see one mask.
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
};

// A thread's own memory, kept from task to task.
template <class N>
struct Buffer {
  N* numbers = nullptr;
  long size = 0;
  N* of(long count) {
    if (count > size) {
      std::free(numbers);
      size = round_up(count * sizeof(N), 4096) / sizeof(N);
      numbers = (N*)std::aligned_alloc(4096, size * sizeof(N));
    }
    return numbers;
  }
  ~Buffer() { std::free(numbers); }
};

typedef void (*Launcher)(void (*)(void*), void*, unsigned, unsigned);

// Run task(0 .. tasks - 1) on `threads` threads: on the launcher's own (OpenMP's GOMP_parallel, whose threads torch
// keeps waiting already), else on new ones.
template <class Task>
void in_parallel(long tasks, long at_once, int threads, Launcher launcher, const Task& task) {
  struct Shared {
    std::atomic<long> next{0};
    long tasks, at_once;
    const Task* task;
  } shared;
  shared.at_once = at_once, shared.tasks = tasks, shared.task = &task;
  auto work = [](void* data) {
    Shared* mine = (Shared*)data;
    for (long n; (n = mine->next.fetch_add(mine->at_once)) < mine->tasks;)
      for (long m = n; m < std::min(mine->tasks, n + mine->at_once); m++) (*mine->task)(m);
  };
  threads = (int)std::min<long>(threads, tasks);
  if (threads <= 1) {
    work(&shared);
  } else if (launcher) {
    launcher(work, &shared, threads, 0);
  } else {
    std::vector<std::thread> others;
    for (int n = 1; n < threads; n++) others.emplace_back(work, &shared);
    work(&shared);
    for (auto& other : others) other.join();
  }
}

}  // namespace

extern "C" {

// What one call works on. Rows are tokens of all sequences; `*_row` are the distances between rows, in numbers.
struct Attention {
  const void *q, *k, *v;     // heads x head numbers a row
  const int64_t* starts;     // where each sequence starts; one more than there are sequences
  void* out;                 // as q, without gaps
  float* row_sums;           // (heads, tokens): log2 of the sum of the exponentials
  const void* grad_out;      // as out; the backward pass from here on
  void *grad_q, *grad_k, *grad_v;
  int64_t q_row, k_row, v_row, grad_row;
  int64_t sequences, tokens, heads, head;
  int64_t window;   // keys at most so far away; < 0 = all
  int64_t queries;  // only the first so many rows of each sequence ask; < 0 = all
  float scale, dropout;
  uint64_t seed;
  int32_t threads;
  Launcher launcher;
};
}

namespace {

// Scores that a row may not see become this: their exponential is nothing.
constexpr float NOTHING = -1e30f;

inline Floats outside(Floats scores, long row, long column, long length, long window) {
  Ints columns = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int)column;
  Ints hidden = columns >= (int)length;
  if (window >= 0) hidden |= (columns < (int)(row - window)) | (columns > (int)(row + window));
  return hidden ? spread(NOTHING) : scores;
}

inline long asking(const Attention& call, long length) {
  return call.queries < 0 ? length : std::min<long>(length, call.queries);
}

// Rows of queries at a time: a tile's height or a little less, so that the last block is no splinter. Even, so that
// bf16 can pair them.
inline long even_share(long length) {
  const long most = ACCUMULATORS / 2, blocks = (length + most - 1) / most;
  return round_up((length + blocks - 1) / blocks, 2);
}

template <class T>
void forward(const Attention& call, long sequence, long head) {
  typedef typename T::Number Number;
  const long start = call.starts[sequence], length = call.starts[sequence + 1] - start, size = call.head;
  if (length == 0) return;
  const long padded = round_up(length, LANES), units = size / T::PER_UNIT;
  const long queries = asking(call, length), rows_at_once = even_share(queries);
  static thread_local Buffer<uint32_t> keys_there, values_there;
  static thread_local Buffer<float> scores_there, sums_there;
  static thread_local Buffer<Number> weights_there;
  uint32_t* keys = keys_there.of(padded * units);
  uint32_t* values = values_there.of(padded / T::PER_UNIT * size);
  float* scores = scores_there.of(rows_at_once * padded);
  Number* weights = weights_there.of(rows_at_once * padded);
  float* sums = sums_there.of(rows_at_once * size);

  const Number* q = (const Number*)call.q + start * call.q_row + head * size;
  const Number* k = (const Number*)call.k + start * call.k_row + head * size;
  const Number* v = (const Number*)call.v + start * call.v_row + head * size;
  Number* out = (Number*)call.out + (start * call.heads + head) * size;
  float* row_sums = call.row_sums + head * call.tokens + start;
  std::memset(values, 0, padded / T::PER_UNIT * size * 4);
  pack_by_head((const uint32_t*)k, call.k_row / T::PER_UNIT, length, units, keys, padded);
  pack_by_position(v, call.v_row, length, size, values);

  const float to_log2 = call.scale * 1.44269504088896f;
  const Dropout dropout = Dropout::of(call.seed, call.dropout);
  for (long row = 0; row < queries; row += rows_at_once) {
    const long rows = std::min(rows_at_once, queries - row);
    long from = 0, to = padded;
    if (call.window >= 0) {
      from = std::max(0l, row - call.window) / LANES * LANES;
      to = std::min(padded, round_up(row + rows + call.window, LANES));
    }
    product<T>(rows, to - from, units, (const uint32_t*)(q + row * call.q_row), call.q_row / T::PER_UNIT, 1,
               keys + from, padded, scores, padded);
    for (long r = 0; r < rows; r++) {
      float* score = scores + r * padded;
      Number* weight = weights + r * padded;
      Floats most = spread(NOTHING);
      for (long n = 0; n < to - from; n += LANES) {
        Floats s = load<Floats>(score + n);
        if (call.window >= 0 || from + n + LANES > length) {
          s = outside(s, row + r, from + n, length, call.window);
          store(score + n, s);
        }
        most = s > most ? s : most;
      }
      const float top = largest(most) * to_log2;
      const uint32_t key = dropout.row_key(start + row + r, head);
      Floats sum{};
      for (long n = 0; n < to - from; n += LANES) {
        Floats p = exp2(load<Floats>(score + n) * to_log2 - top);
        sum += p;
        if (dropout.threshold) p *= dropout.factors(key, from + n);
        T::put(weight + n, p);
      }
      score[0] = total(sum);
      row_sums[row + r] = top + std::log2(score[0]);
    }
    product<T>(rows, size, (to - from) / T::PER_UNIT, (const uint32_t*)weights, padded / T::PER_UNIT, 1,
               values + from / T::PER_UNIT * size, size, sums, size);
    for (long r = 0; r < rows; r++) {
      const float share = 1.0f / scores[r * padded];
      for (long n = 0; n < size; n += LANES)
        T::put(out + (row + r) * call.heads * size + n, load<Floats>(sums + r * size + n) * share);
    }
  }
}

template <class T>
void backward(const Attention& call, long sequence, long head) {
  typedef typename T::Number Number;
  const long start = call.starts[sequence], length = call.starts[sequence + 1] - start, size = call.head;
  if (length == 0) return;
  const long padded = round_up(length, LANES), units = size / T::PER_UNIT, out_row = call.heads * size;
  const long asked = asking(call, length), rows_at_once = even_share(asked);
  const long row_units = round_up(asked, rows_at_once) / T::PER_UNIT;
  static thread_local Buffer<uint32_t> packed_there, weights_there, grad_scores_there;
  static thread_local Buffer<Number> grad_score_rows_there;
  static thread_local Buffer<float> scores_there, grad_weights_there, grad_q_there, sums_there, deltas_there;
  const long by_head = padded * units, by_position = (padded + LANES) / T::PER_UNIT * size;
  uint32_t* keys_by_head = packed_there.of(2 * by_head + 3 * by_position);
  uint32_t* values_by_head = keys_by_head + by_head;
  uint32_t* keys = values_by_head + by_head;
  uint32_t* queries = keys + by_position;
  uint32_t* grads = queries + by_position;
  uint32_t* weights = weights_there.of(row_units * KEYS);                       // P, in units of rows
  uint32_t* grad_scores = grad_scores_there.of(row_units * KEYS);               // dS, in units of rows
  Number* grad_score_rows = grad_score_rows_there.of(rows_at_once * KEYS);      // dS of a few rows, in units of keys
  float* scores = scores_there.of(rows_at_once * KEYS);
  float* grad_weights = grad_weights_there.of(rows_at_once * KEYS);
  float* grad_q = grad_q_there.of(length * size);
  float* sums = sums_there.of(KEYS * size);
  float* deltas = deltas_there.of(length);  // rowsum(dO * O)

  const Number* q = (const Number*)call.q + start * call.q_row + head * size;
  const Number* k = (const Number*)call.k + start * call.k_row + head * size;
  const Number* v = (const Number*)call.v + start * call.v_row + head * size;
  const Number* out = (const Number*)call.out + start * out_row + head * size;
  const Number* grad_out = (const Number*)call.grad_out + start * out_row + head * size;
  const float* row_sums = call.row_sums + head * call.tokens + start;
  std::memset(keys, 0, padded / T::PER_UNIT * size * 4);
  pack_by_head((const uint32_t*)k, call.k_row / T::PER_UNIT, length, units, keys_by_head, padded);
  pack_by_head((const uint32_t*)v, call.v_row / T::PER_UNIT, length, units, values_by_head, padded);
  pack_by_position(k, call.k_row, length, size, keys);
  pack_by_position(q, call.q_row, asked, size, queries);
  pack_by_position(grad_out, out_row, asked, size, grads);
  for (long row = 0; row < asked; row++) {
    Floats delta{};
    for (long n = 0; n < size; n += LANES) delta += T::get(out + row * out_row + n) * T::get(grad_out + row * out_row + n);
    deltas[row] = total(delta);
  }

  const float to_log2 = call.scale * 1.44269504088896f;
  const Dropout dropout = Dropout::of(call.seed, call.dropout);
  std::memset(grad_q, 0, length * size * 4);
  for (long key = 0; key < padded; key += KEYS) {
    const long columns = std::min(KEYS, padded - key), columns_there = std::min(KEYS, length - key);
    long first = 0, last = asked;  // the rows that see these keys
    if (call.window >= 0) {
      first = std::max(0l, key - call.window) / rows_at_once * rows_at_once;
      last = std::min(asked, key + columns_there + call.window);
    }
    for (long row = first; row < last; row += rows_at_once) {
      const long rows = std::min(rows_at_once, asked - row);
      product<T>(rows, columns, units, (const uint32_t*)(q + row * call.q_row), call.q_row / T::PER_UNIT, 1,
                 keys_by_head + key, padded, scores, KEYS);
      product<T>(rows, columns, units, (const uint32_t*)(grad_out + row * out_row), out_row / T::PER_UNIT, 1,
                 values_by_head + key, padded, grad_weights, KEYS);
      for (long r = 0; r < rows; r += T::PER_UNIT)
        for (long n = 0; n < columns; n += LANES) {
          Floats p[2] = {}, ds[2] = {};
          for (long half = 0; half < T::PER_UNIT && r + half < rows; half++) {
            const long here = row + r + half;
            Floats s = load<Floats>(scores + (r + half) * KEYS + n);
            if (call.window >= 0 || key + n + LANES > length) s = outside(s, here, key + n, length, call.window);
            Floats weight = exp2(s * to_log2 - row_sums[here]);
            Floats grad = load<Floats>(grad_weights + (r + half) * KEYS + n);
            p[half] = weight;
            if (dropout.threshold) {
              Floats factors = dropout.factors(dropout.row_key(start + here, head), key + n);
              p[half] *= factors;
              grad *= factors;
            }
            ds[half] = weight * (grad - deltas[here]) * call.scale;
            T::put(grad_score_rows + (r + half) * KEYS + n, ds[half]);
          }
          const long unit = (row + r) / T::PER_UNIT * KEYS + n;
          put_units(T(), weights + unit, p[0], p[1]);
          put_units(T(), grad_scores + unit, ds[0], ds[1]);
        }
      product<T>(rows, size, columns / T::PER_UNIT, (const uint32_t*)grad_score_rows, KEYS / T::PER_UNIT, 1,
                 keys + key / T::PER_UNIT * size, size, grad_q + row * size, size, true);
    }
    const long first_unit = first / T::PER_UNIT;
    const long steps =
        last > first ? round_up(std::min(asked, round_up(last, rows_at_once)), T::PER_UNIT) / T::PER_UNIT - first_unit : 0;
    for (const bool of_values : {true, false}) {
      product<T>(columns_there, size, steps, (of_values ? weights : grad_scores) + first_unit * KEYS, 1, KEYS,
                 (of_values ? grads : queries) + first_unit * size, size, sums, size);
      Number* to = (Number*)(of_values ? call.grad_v : call.grad_k) + (start + key) * call.grad_row + head * size;
      for (long row = 0; row < columns_there; row++)
        for (long n = 0; n < size; n += LANES)
          T::put(to + row * call.grad_row + n, load<Floats>(sums + row * size + n));
    }
  }
  Number* to = (Number*)call.grad_q + start * call.grad_row + head * size;
  for (long row = 0; row < length; row++)
    for (long n = 0; n < size; n += LANES)
      T::put(to + row * call.grad_row + n, load<Floats>(grad_q + row * size + n));
}

}  // namespace

extern "C" {

// Dropout on `count` numbers without gaps; run over gradients with the same seed, it is its own backward pass.
struct Dropped {
  const void* x;
  void* out;
  int64_t count;
  float share;
  uint64_t seed;
  int32_t threads;
  Launcher launcher;
};
}

namespace {

template <class T>
void drop(const Dropped& call, long from, long to) {
  typedef typename T::Number Number;
  const Dropout dropout = Dropout::of(call.seed, call.share);
  const Number* x = (const Number*)call.x;
  Number* out = (Number*)call.out;
  for (long n = from; n < to; n += LANES) {
    const long numbers = std::min(LANES, to - n);
    Number some[LANES] = {};
    std::memcpy(some, x + n, numbers * sizeof(Number));
    T::put(some, T::get(some) * dropout.factors(dropout.row_key(n >> 20, 0), n & 0xfffff));
    std::memcpy(out + n, some, numbers * sizeof(Number));
  }
}
template <class T>
void drop(const Dropped& call) {
  const long at_once = 16384;
  in_parallel((call.count + at_once - 1) / at_once, 1, call.threads, call.launcher, [&](long block) {
    drop<T>(call, block * at_once, std::min<long>(call.count, (block + 1) * at_once));
  });
}

template <class T>
void attention(const Attention& call) {
  // With many sequences a thread takes all heads of one, which lie in the same lines of memory.
  const long at_once = call.sequences > 8 * call.threads ? call.heads : 1;
  in_parallel(call.sequences * call.heads, at_once, call.threads, call.launcher, [&](long task) {
    call.grad_out ? backward<T>(call, task / call.heads, task % call.heads)
                  : forward<T>(call, task / call.heads, task % call.heads);
  });
}

}  // namespace

extern "C" {
void attention_fp32(const Attention* call) { attention<Fp32>(*call); }
void attention_bf16(const Attention* call) { attention<Bf16>(*call); }
void dropout_fp32(const Dropped* call) { drop<Fp32>(*call); }
void dropout_bf16(const Dropped* call) { drop<Bf16>(*call); }
}
