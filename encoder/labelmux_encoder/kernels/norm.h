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

// LayerNorm of `buffer`, which has this mean.
template <typename T>
void norm_row(const float* buffer, float mean, const Norm& norm, int64_t hidden, T* out) {
  const int64_t whole = hidden / kLanes * kLanes;
  Floats squares(0.0f);
  float tail = 0.0f;
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

// LayerNorm(x + residual). `buffer` has room for `hidden` floats.
template <typename T>
void add_norm_row(const T* x, const T* residual, const Norm& norm, int64_t hidden, float* buffer,
                  T* out) {
  Floats sum(0.0f);
  float tail = 0.0f;
  const int64_t whole = hidden / kLanes * kLanes;
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats value = load(x + h) + load(residual + h);
    value.store(buffer + h);
    sum = sum + value;
  }
  for (int64_t h = whole; h < hidden; ++h) {
    buffer[h] = static_cast<float>(x[h]) + static_cast<float>(residual[h]);
    tail += buffer[h];
  }
  norm_row<T>(buffer, (sum_of(sum) + tail) / hidden, norm, hidden, out);
}

// LayerNorm of a sum of `count` rows. `buffer` has room for `hidden` floats.
template <typename T>
void sum_norm_row(const float* const* rows, int64_t count, const Norm& norm, int64_t hidden,
                  float* buffer, T* out) {
  Floats sum(0.0f);
  float tail = 0.0f;
  const int64_t whole = hidden / kLanes * kLanes;
  for (int64_t h = 0; h < whole; h += kLanes) {
    Floats value = Floats::loadu(rows[0] + h);
    for (int64_t row = 1; row < count; ++row) value = value + Floats::loadu(rows[row] + h);
    value.store(buffer + h);
    sum = sum + value;
  }
  for (int64_t h = whole; h < hidden; ++h) {
    buffer[h] = 0.0f;
    for (int64_t row = 0; row < count; ++row) buffer[h] += rows[row][h];
    tail += buffer[h];
  }
  norm_row<T>(buffer, (sum_of(sum) + tail) / hidden, norm, hidden, out);
}

}  // namespace labelmux
