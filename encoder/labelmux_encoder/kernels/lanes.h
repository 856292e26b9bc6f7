// What the kernels need of a vector register: floats in and out of memory, and 2^x.
#pragma once

#include <ATen/cpu/vec/functional.h>
#include <ATen/cpu/vec/vec.h>
#include <c10/util/BFloat16.h>

#include <algorithm>
#include <cmath>
#include <type_traits>

namespace labelmux {

using at::BFloat16;
using Floats = at::vec::Vectorized<float>;
constexpr int64_t kLanes = Floats::size();

[[gnu::always_inline]] inline Floats load(const float* from) { return Floats::loadu(from); }

[[gnu::always_inline]] inline Floats load(const BFloat16* from) {
  return std::get<0>(at::vec::convert_to_float<BFloat16>(
      at::vec::Vectorized<BFloat16>::loadu(from, kLanes)));
}

[[gnu::always_inline]] inline Floats load(const int32_t* from, int64_t count) {
  const auto found = at::vec::Vectorized<int32_t>::loadu(from, count);
  return at::vec::convert_to_fp_of_same_size<float>(found);
}

[[gnu::always_inline]] inline Floats load(const float* from, int64_t count) { return Floats::loadu(from, count); }

[[gnu::always_inline]] inline Floats load(const BFloat16* from, int64_t count) {
  if (count >= kLanes) return load(from);
  BFloat16 buffer[kLanes] = {};
  std::copy(from, from + count, buffer);
  return load(buffer);
}

[[gnu::always_inline]] inline void store(const Floats& values, float* to) { values.store(to); }

[[gnu::always_inline]] inline void store(const Floats& values, BFloat16* to) {
#if defined(CPU_CAPABILITY_AVX512) && defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(values)));
#else
  at::vec::convert_from_float<BFloat16>(values, values).store(to, kLanes);
#endif
}

// Rounded to whole numbers from 0 to 255.
[[gnu::always_inline]] inline void store(const Floats& values, uint8_t* to) {
#if defined(CPU_CAPABILITY_AVX512)
  const __m512i whole = _mm512_max_epi32(_mm512_cvtps_epi32(values), _mm512_setzero_si512());
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtusepi32_epi8(whole));
#else
  float buffer[kLanes];
  values.store(buffer);
  for (int64_t lane = 0; lane < kLanes; ++lane) {
    to[lane] = static_cast<uint8_t>(std::nearbyint(std::clamp(buffer[lane], 0.0f, 255.0f)));
  }
#endif
}

template <typename T>
[[gnu::always_inline]] inline void store(const Floats& values, T* to, int64_t count) {
  if (count >= kLanes) return store(values, to);
  T buffer[kLanes];
  store(values, buffer);
  std::copy(buffer, buffer + count, to);
}

// 2^x for x <= 0, to a relative 1.1e-7, or 1.1e-4 where the result becomes a bfloat16 anyhow.
template <typename T>
[[gnu::always_inline]] inline Floats exp2(const Floats& x) {
#if defined(CPU_CAPABILITY_AVX512)
  // Far enough down for nothing, and no further: what underflows costs hundreds of cycles.
  const __m512 power = _mm512_max_ps(x, _mm512_set1_ps(-100.0f));
  const __m512 whole = _mm512_roundscale_ps(power, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 part = _mm512_sub_ps(power, whole);
  __m512 value;
  if constexpr (std::is_same_v<T, BFloat16>) {
    value = _mm512_set1_ps(5.592203565e-02f);
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(2.426400828e-01f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(6.931210340e-01f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(9.999244815e-01f));
  } else {
    value = _mm512_set1_ps(1.340043217e-03f);
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(9.676037098e-03f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(5.550327214e-02f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(2.402210736e-01f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(6.931472067e-01f));
    value = _mm512_fmadd_ps(value, part, _mm512_set1_ps(1.000000075e+00f));
  }
  return _mm512_scalef_ps(value, whole);
#else
  return (x * Floats(0.6931471805599453f)).exp();
#endif
}

#if defined(CPU_CAPABILITY_AVX512)
// x * P(X <= x) of a normal variable, to an absolute 8e-5: P - 1/2 is odd, and here a polynomial
// up to 4.2 whose weighted error is the least, 1/2 from there on.
inline __m512 coarse_gelu(__m512 x) {
  const __m512 end = _mm512_set1_ps(4.2f);
  const __m512 at = _mm512_max_ps(_mm512_min_ps(x, end), _mm512_sub_ps(_mm512_setzero_ps(), end));
  const __m512 square = _mm512_mul_ps(at, at);
  __m512 value = _mm512_set1_ps(-9.017506611790476e-10f);
  for (const float next : {7.94132147061596e-08f, -3.0379264591375447e-06f, 6.689061994179787e-05f,
                           -9.506568809449657e-04f, 9.298226551695385e-03f,
                           -6.552819615082527e-02f, 3.984658687865282e-01f}) {
    value = _mm512_fmadd_ps(value, square, _mm512_set1_ps(next));
  }
  return _mm512_mul_ps(x, _mm512_fmadd_ps(value, at, _mm512_set1_ps(0.5f)));
}
#endif

// x * P(X <= x) of a normal variable, to an absolute 2e-7 (Abramowitz and Stegun 1964, 7.1.26), or
// 8e-5 where the result becomes a bfloat16 anyhow.
template <typename T>
[[gnu::always_inline]] inline Floats gelu(const Floats& x) {
#if defined(CPU_CAPABILITY_AVX512)
  if constexpr (std::is_same_v<T, BFloat16>) return coarse_gelu(x);
  const __m512 z = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678118654752f));
  const __m512 t = _mm512_div_ps(
      _mm512_set1_ps(1.0f), _mm512_fmadd_ps(z, _mm512_set1_ps(0.3275911f), _mm512_set1_ps(1.0f)));
  __m512 tail = _mm512_set1_ps(1.061405429f);
  tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-1.453152027f));
  tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(1.421413741f));
  tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(-0.284496736f));
  tail = _mm512_fmadd_ps(tail, t, _mm512_set1_ps(0.254829592f));
  const __m512 square = _mm512_mul_ps(_mm512_mul_ps(z, z), _mm512_set1_ps(-1.4426950408889634f));
  // Half of 1 - erf(z): what a negative x keeps, and a positive one loses.
  tail = _mm512_mul_ps(_mm512_mul_ps(tail, t),
                       _mm512_mul_ps(exp2<T>(square), _mm512_set1_ps(0.5f)));
  const __m512 negative = _mm512_mul_ps(x, tail);
  const __mmask16 positive = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_GT_OQ);
  return _mm512_mask_sub_ps(negative, positive, x, negative);
#else
  return x * Floats(0.5f) * ((x * Floats(0.70710678118654752f)).erf() + Floats(1.0f));
#endif
}

// GELU by tanh (Hendrycks and Gimpel 2016, 2), which is x times a logistic function.
template <typename T>
[[gnu::always_inline]] inline Floats gelu_tanh(const Floats& x) {
  // 2 sqrt(2 / pi) / ln 2: of a power of two.
  const Floats inner = at::vec::fmadd(x * x * x, Floats(0.044715f), x) * Floats(2.302208199f);
  const Floats power = exp2<T>(inner.abs().neg());
  const Floats smaller = x * power / (power + Floats(1.0f));
  return Floats::blendv(smaller, x - smaller, x > Floats(0.0f));
}

[[gnu::always_inline]] inline float sum_of(const Floats& values) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_reduce_add_ps(values);
#else
  return at::vec::vec_reduce_all<float>([](Floats& a, Floats& b) { return a + b; }, values);
#endif
}

[[gnu::always_inline]] inline float highest_of(const Floats& values) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_reduce_max_ps(values);
#else
  return at::vec::vec_reduce_all<float>([](Floats& a, Floats& b) { return at::vec::maximum(a, b); },
                                        values);
#endif
}

// maximum without at::vec's care for NaN, which costs three instructions.
[[gnu::always_inline]] inline Floats higher(const Floats& a, const Floats& b) {
#if defined(CPU_CAPABILITY_AVX512)
  return _mm512_max_ps(a, b);
#else
  return at::vec::maximum(a, b);
#endif
}

// The first `count` lanes of `value`, the others of `rest`; at::vec's own takes a jump per call.
[[gnu::always_inline]] inline Floats first_lanes(const Floats& value, int64_t count, const Floats& rest) {
  if (count <= 0) return rest;
#if defined(CPU_CAPABILITY_AVX512)
  const auto mask = static_cast<__mmask16>(0xffffu >> (kLanes - std::min(count, kLanes)));
  return _mm512_mask_mov_ps(rest, mask, value);
#else
  return Floats::set(rest, value, std::min(count, kLanes));
#endif
}

// [rows, columns] to [columns, rows], 32-bit values.
inline void transpose(const float* from, int64_t from_stride, int64_t rows, int64_t columns,
                      float* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; row += 16) {
    const int64_t some_rows = std::min<int64_t>(16, rows - row);
    for (int64_t column = 0; column < columns; column += 16) {
      const int64_t some_columns = std::min<int64_t>(16, columns - column);
      const float* block = from + row * from_stride + column;
      float* out = to + column * to_stride + row;
#if defined(CPU_CAPABILITY_AVX512)
      at::vec::transpose_mxn<float>(block, from_stride, out, to_stride,
                                    static_cast<int>(some_rows), static_cast<int>(some_columns));
#else
      for (int64_t r = 0; r < some_rows; ++r) {
        for (int64_t c = 0; c < some_columns; ++c) out[c * to_stride + r] = block[r * from_stride + c];
      }
#endif
    }
  }
}

}  // namespace labelmux
