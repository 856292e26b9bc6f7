// A linear map with an activation after it: torch's brgemm over tiles, bias and activation while
// a tile is in the cache.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <memory>

#include "activations.h"
#include "products.h"

namespace labelmux {

constexpr int64_t kTileRows = 64;
// Of a tile, at most: its sums, and what it reads of the weight, stay in the cache of one core.
constexpr int64_t kTileColumns = 512, kTileBytes = 600'000;
constexpr int64_t kColumnStep = 32;

// Columns of a tile: as many as keep the threads evenly busy, few rows being divided by columns.
inline int64_t tile_columns(int64_t row_tiles, int64_t n, int64_t column_bytes) {
  const int64_t threads = at::in_parallel_region() ? 1 : at::get_num_threads();
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

// Rows of x are contiguous. weight [blocks, K, block] as `kernels.blocks` lays it out, bias [N].
template <typename T>
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias,
                  Activation after = Activation::kNone) {
  const int64_t m = x.size(0), k = x.size(1), n = bias.size(0), block = weight.size(2);
  const int64_t row_tiles = (m + kTileRows - 1) / kTileRows;
  const int64_t width = tile_columns(row_tiles, n, k * sizeof(T));
  at::Tensor out = at::empty({m, n}, x.options());
  const T* from = x.const_data_ptr<T>();
  const T* blocks = weight.const_data_ptr<T>();
  const float* added = bias.const_data_ptr<float>();
  T* to = out.mutable_data_ptr<T>();
  at::parallel_for(0, row_tiles * ((n + width - 1) / width), 1, [&](int64_t begin, int64_t end) {
    const std::unique_ptr<float[]> sums(new float[kTileRows * width]);
    for (int64_t tile = begin; tile < end; ++tile) {
      // All rows of a part of the weight, then the next part: it is the larger of the two.
      const int64_t row = tile % row_tiles * kTileRows, column = tile / row_tiles * width;
      const int64_t rows = std::min(kTileRows, m - row), columns = std::min(width, n - column);
      for (int64_t done = 0; done < columns;) {
        const int64_t inside = (column + done) % block;
        const int64_t some = std::min(columns - done, block - inside);
        const T* right = blocks + (column + done - inside) * k + inside * kInterleave<T>;
        multiply(rows, some, k, from + row * k, k, right, block, sums.get() + done, columns);
        done += some;
      }
      finish(sums.get(), rows, columns, added + column, after, to + row * n + column, n);
    }
    release(kInterleave<T> == 2);
  });
  return out;
}

}  // namespace labelmux
