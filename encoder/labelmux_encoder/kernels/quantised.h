// Products in int8: a weight's rows have a scale each, a token's values a scale and a zero.
#pragma once

#include <ATen/core/Tensor.h>

#include <cmath>
#include <cstdint>
#include <memory>
#include <vector>

#include "lanes.h"

namespace labelmux {

// A value is about scale * (byte - zero); the scale of none is 0.
struct ByteScale {
  float scale = 0.0f;
  float zero = 0.0f;
};

// Less is nothing: its inverse would overflow.
constexpr float kLeastSpan = 1e-30f;

// The bytes from 0 to 255 span the row's values and 0. One that is no number leaves none of the row.
template <typename T>
ByteScale to_bytes(const T* row, int64_t count, uint8_t* to) {
  Floats low(0.0f), high(0.0f);
  for (int64_t at = 0; at < count; at += kLanes) {
    const Floats value = load(row + at, std::min(kLanes, count - at));
    low = at::vec::minimum(low, value);
    high = at::vec::maximum(high, value);
  }
  // Not always by the extremes, which a reduction may lose.
  const float fault = 0.0f * sum_of(low + high);
  const float lowest = -highest_of(low.neg()), span = highest_of(high) - lowest + fault;
  const float scale = span < kLeastSpan ? 1.0f : span / 255.0f;
  const float zero = std::nearbyint(-lowest / scale);
  for (int64_t at = 0; at < count; at += kLanes) {
    const int64_t some = std::min(kLanes, count - at);
    store(at::vec::fmadd(load(row + at, some), Floats(1.0f / scale), Floats(zero)), to + at, some);
  }
  return {scale, zero};
}

// A product of rows as bytes with a weight in int8. Constants [3, N]: the bias, each column's scale,
// the sum of each column's whole numbers.
template <typename T>
class QuantisedProduct {
 public:
  using Right = int8_t;
  using Sum = int32_t;

  QuantisedProduct(const at::Tensor& constants, const at::Tensor& x)
      : x_(x.const_data_ptr<T>()), k_(x.size(1)), bias_(constants.const_data_ptr<float>()),
        scale_(bias_ + constants.size(1)), sum_(scale_ + constants.size(1)),
        bytes_(new uint8_t[x.numel()]), rows_(x.size(0)) {}

  // A tile's rows are turned into bytes once, for all of its columns.
  const uint8_t* left(int64_t first, int64_t count) {
    for (int64_t row = first; row < first + count && rows_[row].scale == 0.0f; ++row) {
      rows_[row] = to_bytes(x_ + row * k_, k_, bytes_.get() + row * k_);
    }
    return bytes_.get() + first * k_;
  }

  Floats value(const Sum* sums, int64_t row, int64_t column, int64_t lanes) const {
    const Floats shift(-rows_[row].zero);
    const Floats centred = at::vec::fmadd(shift, load(sum_ + column, lanes), load(sums, lanes));
    return at::vec::fmadd(centred * Floats(rows_[row].scale), load(scale_ + column, lanes),
                          load(bias_ + column, lanes));
  }

 private:
  const T* x_;
  const int64_t k_;
  const float* bias_;
  const float* scale_;
  const float* sum_;
  const std::unique_ptr<uint8_t[]> bytes_;
  std::vector<ByteScale> rows_;
};

}  // namespace labelmux
