// Attention over sequences that lie one after the other, forward and backward, and dropout.
//
// One task is one head of one sequence: its keys, values and scores stay in the core's own cache, and nothing is
// computed for padding. The backward pass makes the probabilities again from the row sums, as FlashAttention-2 does
// (Dao 2023, arXiv:2307.08691).

#include <cmath>

#include "dropout.h"
#include "parallel.h"
#include "products.h"

extern "C" {

// What one call works on. Rows are tokens of all sequences; `*_row` are the distances between rows, in numbers.
struct Attention {
  const void *q, *k, *v;     // heads x head numbers a row
  const int64_t* starts;     // where each sequence starts; one more than there are sequences
  void* out;                 // as q, without gaps
  float* row_sums;           // (heads, tokens): log2 of the sum of the exponentials; null = not kept
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

constexpr long KEYS = 128;  // keys at a time in the backward pass, a multiple of 2 * TILE: their weights stay in L2

// Scores that a row may not see become this: their exponential is nothing.
constexpr float NOTHING = -1e30f;
constexpr float LOG2_E = 1.44269504088896f;

inline Floats outside(Floats scores, long row, long column, long length, long window) {
  Ints columns = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int)column;
  Ints hidden = columns >= (int)length;
  if (window >= 0) hidden |= (columns < (int)(row - window)) | (columns > (int)(row + window));
  return hidden ? spread(NOTHING) : scores;
}

inline long asking(const Attention& call, long length) {
  return call.queries < 0 ? length : std::min<long>(length, call.queries);
}

// Rows of queries at a time. On AMX two tiles' height. Else that of `tile` or a little less, so that the last block is
// no splinter, and even, so that bf16 can pair them.
template <class T>
inline long even_share(long length) {
  if (by_tiles<T>()) return 2 * TILE;
  const long most = ACCUMULATORS / 2, blocks = (length + most - 1) / most;
  return round_up((length + blocks - 1) / blocks, 2);
}

// Turn one row of scores, those of keys from..to, into weights that do not sum to 1 yet; return their sum.
template <class T>
float softmax(const Attention& call, const Dropout& dropout, long start, long row, long head, long length, long from,
              long to, float* scores, typename T::Number* weights, float* row_sum) {
  const float to_log2 = call.scale * LOG2_E;
  Floats most = spread(NOTHING);
  for (long n = 0; n < to - from; n += LANES) {
    Floats s = load<Floats>(scores + n);
    if (call.window >= 0 || from + n + LANES > length) {
      s = outside(s, row, from + n, length, call.window);
      store(scores + n, s);
    }
    most = s > most ? s : most;
  }
  const float top = largest(most) * to_log2;
  const uint32_t key = dropout.row_key(start + row, head);
  Floats sum{};
  for (long n = 0; n < to - from; n += LANES) {
    Floats p = exp2<T>(load<Floats>(scores + n) * to_log2 - top);
    sum += p;
    if (dropout.threshold) p *= dropout.factors(key, from + n);
    T::put(weights + n, p);
  }
  if (row_sum) *row_sum = top + std::log2(total(sum));
  return total(sum);
}

template <class T>
void forward(const Attention& call, long sequence, long head) {
  typedef typename T::Number Number;
  const long start = call.starts[sequence], length = call.starts[sequence + 1] - start, size = call.head;
  if (length == 0) return;
  const long together = by_tiles<T>() ? 2 * TILE : LANES, padded = round_up(length, together), units = size / T::PER_UNIT;
  const long queries = asking(call, length), rows_at_once = even_share<T>(queries);
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
  float* row_sums = call.row_sums ? call.row_sums + head * call.tokens + start : nullptr;
  std::memset(values, 0, padded / T::PER_UNIT * size * 4);
  pack_by_head((const uint32_t*)k, call.k_row / T::PER_UNIT, length, units, keys, padded);
  pack_by_position(v, call.v_row, length, size, values);

  const Dropout dropout = Dropout::of(call.seed, call.dropout);
  for (long row = 0; row < queries; row += rows_at_once) {
    const long rows = std::min(rows_at_once, queries - row);
    long from = 0, to = padded;
    if (call.window >= 0) {
      from = std::max<long>(0, row - call.window) / together * together;
      to = std::min(padded, round_up(row + rows + call.window, together));
    }
    product<T>(rows, to - from, units, (const uint32_t*)(q + row * call.q_row), call.q_row / T::PER_UNIT, 1,
               keys + from, padded, scores, padded);
    for (long r = 0; r < rows; r++)
      scores[r * padded] = softmax<T>(call, dropout, start, row + r, head, length, from, to, scores + r * padded,
                                      weights + r * padded, row_sums ? row_sums + row + r : nullptr);
    product<T>(rows, size, (to - from) / T::PER_UNIT, (const uint32_t*)weights, padded / T::PER_UNIT, 1,
               values + from / T::PER_UNIT * size, size, sums, size);
    for (long r = 0; r < rows; r++) {
      const float share = 1.0f / scores[r * padded];
      for (long n = 0; n < size; n += LANES)
        T::put(out + (row + r) * call.heads * size + n, load<Floats>(sums + r * size + n) * share);
    }
  }
}

// Return the gradient of a key's scores by 16 queries from `row` on, and put the weights that the forward pass used into
// `weights`. Queries that are none have a row sum so large that both are nothing.
template <class T>
inline Floats grad_of_scores(const Attention& call, const Dropout& dropout, long start, long row, long head, long key,
                             const float* row_sums, const float* deltas, Floats scores, Floats grad, Floats& weights) {
  if (call.window >= 0) {
    const Ints rows = Ints{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15} + (int)row;
    scores = (rows < (int)(key - call.window)) | (rows > (int)(key + call.window)) ? spread(NOTHING) : scores;
  }
  const Floats p = exp2<T>(scores * (call.scale * LOG2_E) - load<Floats>(row_sums + row));
  weights = p;
  if (dropout.threshold) {
    const Floats factors = dropout.factors_of_rows(start + row, head, key);
    weights *= factors;
    grad *= factors;
  }
  return p * (grad - load<Floats>(deltas + row)) * call.scale;
}

// Keys are the rows of every product here, so that each reads its left side as it lies: S' = K Q', dP' = V dO', then
// dV = P' dO, dK = dS' Q, dQ' = K' dS'. The last is turned when it is whole.
template <class T>
void backward(const Attention& call, long sequence, long head) {
  typedef typename T::Number Number;
  const long start = call.starts[sequence], length = call.starts[sequence + 1] - start, size = call.head;
  if (length == 0) return;
  const long together = by_tiles<T>() ? 2 * TILE : LANES, rows_at_once = even_share<T>(std::min(length, KEYS));
  const long asked = asking(call, length), padded = round_up(asked, together), padded_keys = round_up(length, KEYS);
  const long units = size / T::PER_UNIT, out_row = call.heads * size;
  static thread_local Buffer<uint32_t> packed_there, grad_scores_there;
  static thread_local Buffer<Number> weights_there, grad_score_rows_there, keys_there;
  static thread_local Buffer<float> scores_there, grad_weights_there, grad_q_there, sums_there, of_rows_there;
  const long by_head = padded * units, by_position = padded / T::PER_UNIT * size;
  uint32_t* queries_by_head = packed_there.of(2 * by_head + 2 * by_position);
  uint32_t* grads_by_head = queries_by_head + by_head;
  uint32_t* queries = grads_by_head + by_head;
  uint32_t* grads = queries + by_position;
  Number* keys = keys_there.of(size * padded_keys);                     // K'
  Number* weights = weights_there.of(KEYS * padded);                    // P'
  Number* grad_score_rows = grad_score_rows_there.of(KEYS * padded);    // dS'
  uint32_t* grad_scores = grad_scores_there.of(KEYS / T::PER_UNIT * padded);  // dS', in units of keys
  float* scores = scores_there.of(rows_at_once * padded);
  float* grad_weights = grad_weights_there.of(rows_at_once * padded);
  float* grad_q = grad_q_there.of(size * padded);                       // dQ'
  float* sums = sums_there.of(KEYS * size);
  float* deltas = of_rows_there.of(2 * padded);                         // rowsum(dO * O)
  float* row_sums = deltas + padded;

  const Number* q = (const Number*)call.q + start * call.q_row + head * size;
  const Number* k = (const Number*)call.k + start * call.k_row + head * size;
  const Number* v = (const Number*)call.v + start * call.v_row + head * size;
  const Number* out = (const Number*)call.out + start * out_row + head * size;
  const Number* grad_out = (const Number*)call.grad_out + start * out_row + head * size;
  std::memset(queries_by_head, 0, (2 * by_head + 2 * by_position) * 4);
  pack_by_head((const uint32_t*)q, call.q_row / T::PER_UNIT, asked, units, queries_by_head, padded);
  pack_by_head((const uint32_t*)grad_out, out_row / T::PER_UNIT, asked, units, grads_by_head, padded);
  pack_by_position(q, call.q_row, asked, size, queries);
  pack_by_position(grad_out, out_row, asked, size, grads);
  turn(k, call.k_row, length, size, keys, padded_keys);
  for (long row = 0; row < padded; row++) deltas[row] = 0, row_sums[row] = -NOTHING;
  std::memcpy(row_sums, call.row_sums + head * call.tokens + start, asked * 4);
  for (long row = 0; row < asked; row++) {
    Floats delta{};
    for (long n = 0; n < size; n += LANES) delta += T::get(out + row * out_row + n) * T::get(grad_out + row * out_row + n);
    deltas[row] = total(delta);
  }

  const Dropout dropout = Dropout::of(call.seed, call.dropout);
  std::memset(grad_q, 0, size * padded * 4);
  for (long key = 0; key < length; key += KEYS) {
    const long there = std::min(KEYS, length - key), filled = round_up(there, together);
    long from = 0, to = padded;  // the queries that see these keys
    if (call.window >= 0) {
      from = std::min(padded, std::max<long>(0, key - call.window) / together * together);
      to = std::max(from, std::min(padded, round_up(key + there + call.window, together)));
    }
    const long columns = to - from;
    for (long row = 0; row < there; row += rows_at_once) {
      const long rows = std::min(rows_at_once, there - row);
      product<T>(rows, columns, units, (const uint32_t*)(k + (key + row) * call.k_row), call.k_row / T::PER_UNIT, 1,
                 queries_by_head + from, padded, scores, padded);
      product<T>(rows, columns, units, (const uint32_t*)(v + (key + row) * call.v_row), call.v_row / T::PER_UNIT, 1,
                 grads_by_head + from, padded, grad_weights, padded);
      for (long r = 0; r < rows; r += T::PER_UNIT)
        for (long n = 0; n < columns; n += LANES) {
          Floats ds[2] = {};
          for (long half = r; half < std::min(rows, r + T::PER_UNIT); half++) {
            Floats p;
            ds[half - r] = grad_of_scores<T>(call, dropout, start, from + n, head, key + row + half, row_sums, deltas,
                                             load<Floats>(scores + half * padded + n),
                                             load<Floats>(grad_weights + half * padded + n), p);
            T::put(weights + (row + half) * padded + n, p);
            T::put(grad_score_rows + (row + half) * padded + n, ds[half - r]);
          }
          put_units(T(), grad_scores + (row + r) / T::PER_UNIT * padded + n, ds[0], ds[1]);
        }
    }
    for (long unit = (there + T::PER_UNIT - 1) / T::PER_UNIT; unit < filled / T::PER_UNIT; unit++)
      std::memset(grad_scores + unit * padded, 0, columns * 4);
    product<T>(size, columns, filled / T::PER_UNIT, (const uint32_t*)(keys + key), padded_keys / T::PER_UNIT, 1,
               grad_scores, padded, grad_q + from, padded, true);
    for (const bool of_values : {true, false}) {
      product<T>(there, size, columns / T::PER_UNIT, (const uint32_t*)(of_values ? weights : grad_score_rows),
                 padded / T::PER_UNIT, 1, (of_values ? grads : queries) + from / T::PER_UNIT * size, size, sums, size);
      Number* to = (Number*)(of_values ? call.grad_v : call.grad_k) + (start + key) * call.grad_row + head * size;
      for (long row = 0; row < there; row++)
        for (long n = 0; n < size; n += LANES)
          T::put(to + row * call.grad_row + n, load<Floats>(sums + row * size + n));
    }
  }
  put_turned<T>(grad_q, padded, asked, size, (Number*)call.grad_q + start * call.grad_row + head * size, call.grad_row);
  for (long row = asked; row < length; row++)
    std::memset((Number*)call.grad_q + (start + row) * call.grad_row + head * size, 0, size * sizeof(Number));
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
void drop(const Dropped& call) {
  typedef typename T::Number Number;
  const Dropout dropout = Dropout::of(call.seed, call.share);
  const long at_once = 16384;
  auto some = [&](const Number* x, Number* out, long n) {
    T::put(out, T::get(x) * dropout.factors(dropout.row_key(n >> 20, 0), n & 0xfffff));
  };
  in_parallel((call.count + at_once - 1) / at_once, 1, call.threads, call.launcher, [&](long block) {
    const Number* x = (const Number*)call.x;
    Number* out = (Number*)call.out;
    const long end = std::min<long>(call.count, (block + 1) * at_once), whole = end / LANES * LANES;
    for (long n = block * at_once; n < whole; n += LANES) some(x + n, out + n, n);
    if (whole == end) return;
    Number last[LANES] = {};  // the last few go through a copy, so that whole vectors are moved
    std::memcpy(last, x + whole, (end - whole) * sizeof(Number));
    some(last, last, whole);
    std::memcpy(out + whole, last, (end - whole) * sizeof(Number));
  });
}

template <class T>
void attention(const Attention& call) {
  // With many sequences a thread takes all heads of one, which lie in the same lines of memory.
  const long at_once = call.sequences > 8 * call.threads ? call.heads : 1;
  in_parallel(call.sequences * call.heads, at_once, call.threads, call.launcher, [&](long task) {
    const Tiles tiles(by_tiles<T>());
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
