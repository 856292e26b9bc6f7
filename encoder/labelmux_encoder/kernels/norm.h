// LayerNorm of one token.
#pragma once

#include <cmath>

#include "lanes.h"

namespace labelmux {

struct Norm {
  const float* weight;
  const float* bias;
  float epsilon;
};

// LayerNorm of values that `lanes` gives from a place on, and `one` at a place. `buffer` has room
// for `hidden` floats.
template <typename T, typename Lanes, typename One>
void norm_row(const Lanes& lanes, const One& one, const Norm& norm, int64_t hidden, float* buffer,
              T* out) {
  Floats sum(0.0f);
  float tail = 0.0f;
  const int64_t whole = hidden / kLanes * kLanes;
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats value = lanes(h);
    value.store(buffer + h);
    sum = sum + value;
  }
  for (int64_t h = whole; h < hidden; ++h) {
    buffer[h] = one(h);
    tail += buffer[h];
  }
  const float mean = (sum_of(sum) + tail) / hidden;
  Floats squares(0.0f);
  tail = 0.0f;
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats centred = Floats::loadu(buffer + h) - Floats(mean);
    squares = at::vec::fmadd(centred, centred, squares);
  }
  for (int64_t h = whole; h < hidden; ++h) tail += (buffer[h] - mean) * (buffer[h] - mean);
  const float variance = (sum_of(squares) + tail) / hidden;
  const float scale = 1.0f / std::sqrt(variance + norm.epsilon);
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats normal = (Floats::loadu(buffer + h) - Floats(mean)) * Floats(scale);
    const Floats value =
        at::vec::fmadd(normal, Floats::loadu(norm.weight + h), Floats::loadu(norm.bias + h));
    store(value, out + h);
  }
  for (int64_t h = whole; h < hidden; ++h) {
    out[h] = T((buffer[h] - mean) * scale * norm.weight[h] + norm.bias[h]);
  }
}

// LayerNorm(x + residual).
template <typename T>
void add_norm_row(const T* x, const T* residual, const Norm& norm, int64_t hidden, float* buffer,
                  T* out) {
  norm_row<T>([&](int64_t h) { return load(x + h) + load(residual + h); },
              [&](int64_t h) { return static_cast<float>(x[h]) + static_cast<float>(residual[h]); },
              norm, hidden, buffer, out);
}

// LayerNorm of a sum of `count` rows.
template <typename T>
void sum_norm_row(const float* const* rows, int64_t count, const Norm& norm, int64_t hidden,
                  float* buffer, T* out) {
  norm_row<T>(
      [&](int64_t h) {
        Floats value = Floats::loadu(rows[0] + h);
        for (int64_t row = 1; row < count; ++row) value = value + Floats::loadu(rows[row] + h);
        return value;
      },
      [&](int64_t h) {
        float value = 0.0f;
        for (int64_t row = 0; row < count; ++row) value += rows[row][h];
        return value;
      },
      norm, hidden, buffer, out);
}

}  // namespace labelmux
