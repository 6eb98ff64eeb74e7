// Vectors of 16 numbers, and the two types they are stored in: fp32 and bf16.
//
// Vectors are GCC's and clang's vector extensions, so that one text serves AVX2, AVX-512 and NEON; bf16 products use
// AVX512-BF16 where the processor has it. Numbers are moved in units of 32 bits: two bf16 or one fp32.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Units __attribute__((vector_size(64)));

constexpr long LANES = 16;

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

// Half with half, three times: fewer steps that wait for each other than one lane after the other.
template <class Both>
inline float across(Floats v, const Both& both) {
  typedef float Eight __attribute__((vector_size(32)));
  typedef float Four __attribute__((vector_size(16)));
  Eight eight[2], of_eight;
  Four four[2], of_four;
  std::memcpy(eight, &v, sizeof v);
  of_eight = both(eight[0], eight[1]);
  std::memcpy(four, &of_eight, sizeof of_eight);
  of_four = both(four[0], four[1]);
  return both(both(of_four[0], of_four[2]), both(of_four[1], of_four[3]));
}
inline float total(Floats v) {
  return across(v, [](auto a, auto b) { return a + b; });
}
inline float largest(Floats v) {
  return across(v, [](auto a, auto b) { return a > b ? a : b; });
}

struct Fp32 {
  typedef float Number;
  static constexpr long PER_UNIT = 1;
  static Floats dot(Floats sum, Units a, Units b) { return sum + (Floats)a * (Floats)b; }
  // 2^f for |f| <= 1/2, as exact as the type needs.
  static Floats power(Floats f) {
    Floats y = spread(1.535336188319500e-4f);
    y = y * f + 1.339887440266574e-3f;
    y = y * f + 9.618437357674640e-3f;
    y = y * f + 5.550332471162809e-2f;
    y = y * f + 2.402264791363012e-1f;
    y = y * f + 6.931472028550421e-1f;
    return y * f + 1.0f;
  }
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
  static Floats power(Floats f) {
    Floats y = spread(0.00956051021f);
    y = y * f + 0.0559170392f;
    y = y * f + 0.240249811f;
    y = y * f + 0.693121968f;
    return y * f + 0.999999191f;
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

// 2^x for x <= 127; far below that the answer is nothing, or nothing beside a sum that holds a 1.
template <class T>
inline Floats exp2(Floats x) {
#if defined(__AVX512F__)
  x = (Floats)_mm512_max_ps(_mm512_set1_ps(-1e4f), (__m512)x);  // -inf would become not a number
  __m512 whole = _mm512_roundscale_ps((__m512)x, 0);
  return (Floats)_mm512_scalef_ps((__m512)T::power(x - (Floats)whole), whole);
#else
  x = x < -126.0f ? spread(-126.0f) : x;
  Floats shifted = x + 12582912.0f;  // 1.5 * 2^23 rounds to the nearest whole number
  Floats whole = shifted - 12582912.0f;
  Ints power = (__builtin_convertvector(whole, Ints) + 127) << 23;
  return T::power(x - whole) * (Floats)power;
#endif
}

}  // namespace
