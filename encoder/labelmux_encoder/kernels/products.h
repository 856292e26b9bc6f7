// Matrix products of small blocks, by torch's brgemm, and the order that it reads.
#pragma once

#include <ATen/native/CPUBlas.h>
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace labelmux {

inline int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// How many consecutive values of the inner dimension lie together in a product's right operand.
template <typename T>
constexpr int64_t kInterleave = 4 / sizeof(T);

// c [m, n] = a [m, k] b [k, n], b interleaved; or added to c
template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              float* c, int64_t ldc, bool add = false) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, /*add_C=*/add, a, b, c,
                              /*is_vnni=*/kInterleave<T> == 2);
}

// The same in whole numbers, which are exact.
inline void multiply(int64_t m, int64_t n, int64_t k, const uint8_t* a, int64_t lda,
                     const int8_t* b, int64_t ldb, int32_t* c, int64_t ldc) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, /*add_C=*/false, a, b, c, /*is_vnni=*/true);
}

// A thread's tile registers, if its products used them.
inline void release(bool used_tiles) { at::native::cpublas::brgemm_release(used_tiles); }

// Two bfloat16 rows to one of pairs; rows beyond the last real one are zeros.
inline void interleave(const at::BFloat16* from, int64_t stride, int64_t real_rows, int64_t columns,
                       at::BFloat16* to) {
  const auto* first = reinterpret_cast<const uint16_t*>(from);
  const auto* second = first + stride;
  auto* pairs = reinterpret_cast<uint32_t*>(to);
  if (real_rows >= 2) {
    for (int64_t d = 0; d < columns; ++d) pairs[d] = first[d] | uint32_t{second[d]} << 16;
  } else {
    for (int64_t d = 0; d < columns; ++d) pairs[d] = real_rows == 1 ? first[d] : 0;
  }
}

}  // namespace labelmux
