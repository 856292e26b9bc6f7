// A linear map with an activation after it: torch's brgemm over tiles, bias and activation while
// a tile is in the cache.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>

#include "activations.h"
#include "parallel.h"
#include "products.h"
#include "quantised.h"

namespace labelmux {

constexpr int64_t kTileRows = 64;
// Of a tile, at most: its sums, and what it reads of the weight, stay in the cache of one core.
constexpr int64_t kTileColumns = 512, kTileBytes = 600'000;
constexpr int64_t kColumnStep = 32;

// Columns of a tile: as many as keep the threads evenly busy, few rows being divided by columns.
inline int64_t tile_columns(int64_t row_tiles, int64_t n, int64_t column_bytes) {
  const int64_t threads = thread_count();
  const int64_t most = std::max(kColumnStep, std::min(kTileColumns, kTileBytes / column_bytes));
  const int64_t fewest = (n + most - 1) / most;
  int64_t best = 0, least = 0;
  for (int64_t parts = fewest; parts < fewest + threads; ++parts) {
    const int64_t width = round_up((n + parts - 1) / parts, kColumnStep);
    const int64_t of_a_thread = (row_tiles * parts + threads - 1) / threads * width;
    if (best == 0 || of_a_thread < least) best = width, least = of_a_thread;
  }
  return best;
}

// A product of rows as they are.
template <typename T>
class PlainProduct {
 public:
  using Right = T;
  using Sum = float;

  PlainProduct(const at::Tensor& constants, const at::Tensor& x)
      : x_(x.const_data_ptr<T>()), k_(x.size(1)), bias_(constants.const_data_ptr<float>()) {}

  const T* left(int64_t first, int64_t) const { return x_ + first * k_; }

  Floats value(const Sum* sums, int64_t /*row*/, int64_t column, int64_t lanes) const {
    return load(sums, lanes) + load(bias_ + column, lanes);
  }

 private:
  const T* x_;
  const int64_t k_;
  const float* bias_;
};

template <typename Product, typename T>
void fill(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& constants,
          Activation after, at::Tensor& out) {
  using Right = typename Product::Right;
  using Sum = typename Product::Sum;
  const int64_t m = x.size(0), k = x.size(1), n = out.size(1), block = weight.size(2);
  const int64_t row_tiles = (m + kTileRows - 1) / kTileRows;
  const int64_t width = tile_columns(row_tiles, n, k * sizeof(Right));
  const Right* blocks = weight.const_data_ptr<Right>();
  T* to = out.mutable_data_ptr<T>();
  run_ranges(row_tiles * ((n + width - 1) / width), 1, [&](int64_t begin, int64_t end) {
    Product product(constants, x);
    const std::unique_ptr<Sum[]> sums(new Sum[kTileRows * width]);
    for (int64_t tile = begin; tile < end; ++tile) {
      // All rows of a part of the weight, then the next part: it is the larger of the two.
      const int64_t first = tile % row_tiles * kTileRows, column = tile / row_tiles * width;
      const int64_t rows = std::min(kTileRows, m - first), columns = std::min(width, n - column);
      const auto* left = product.left(first, rows);
      for (int64_t done = 0; done < columns;) {
        const int64_t inside = (column + done) % block;
        const int64_t some = std::min(columns - done, block - inside);
        const Right* right = blocks + (column + done - inside) * k + inside * kInterleave<Right>;
        multiply(rows, some, k, left, k, right, block, sums.get() + done, columns);
        done += some;
      }
      for (int64_t row = 0; row < rows; ++row) {
        const auto value = [&](int64_t at, int64_t lanes) {
          return product.value(sums.get() + row * columns + at, first + row, column + at, lanes);
        };
        finish_row(value, columns, after, to + (first + row) * n + column);
      }
    }
    release(kInterleave<Right> != 1);
  });
}

// Rows of x are contiguous. weight [blocks, K, block] as `kernels.blocks` lays it out; constants
// are the bias [N] or, of a weight in int8, what `QuantisedProduct` reads [3, N].
template <typename T>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& constants,
                  Activation after = Activation::kNone) {
  at::Tensor out = at::empty({x.size(0), constants.size(-1)}, x.options());
  if (weight.scalar_type() == at::kChar) {
    fill<QuantisedProduct<T>, T>(x, weight, constants, after, out);
  } else {
    fill<PlainProduct<T>, T>(x, weight, constants, after, out);
  }
  return out;
}

}  // namespace labelmux
