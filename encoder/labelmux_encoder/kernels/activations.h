// What follows a matrix product: bias, activation, rounding.
#pragma once

#include <c10/util/Exception.h>
#include <c10/util/string_view.h>

#include "lanes.h"

namespace labelmux {

enum class Activation { kNone, kGelu, kGeluTanh, kRelu };

// By Hugging Face's name for it.
inline Activation activation_of(c10::string_view name) {
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_new") return Activation::kGeluTanh;
  TORCH_CHECK(name == "relu", "encode: no activation ", name);
  return Activation::kRelu;
}

template <typename T, Activation after>
Floats activated(const Floats& x) {
  if constexpr (after == Activation::kGelu) return gelu<T>(x);
  if constexpr (after == Activation::kGeluTanh) return gelu_tanh<T>(x);
  if constexpr (after == Activation::kRelu) return at::vec::maximum(x, Floats(0.0f));
  return x;
}

template <Activation after, typename From, typename T>
void activate_row(const From* from, const float* bias, int64_t columns, T* to) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    const int64_t count = std::min(kLanes, columns - column);
    Floats value = count == kLanes ? load(from + column) : load(from + column, count);
    if (bias) value = value + (count == kLanes ? load(bias + column) : load(bias + column, count));
    const Floats found = activated<T, after>(value);
    count == kLanes ? store(found, to + column) : store(found, to + column, count);
  }
}

// to [rows, columns] = after(from [rows, columns] + bias); a null bias adds nothing.
template <typename From, typename T>
void finish(const From* from, int64_t rows, int64_t columns, const float* bias, Activation after,
            T* to, int64_t to_stride) {
  for (int64_t row = 0; row < rows; ++row, from += columns, to += to_stride) {
    switch (after) {
      case Activation::kNone: activate_row<Activation::kNone>(from, bias, columns, to); break;
      case Activation::kGelu: activate_row<Activation::kGelu>(from, bias, columns, to); break;
      case Activation::kGeluTanh: activate_row<Activation::kGeluTanh>(from, bias, columns, to); break;
      case Activation::kRelu: activate_row<Activation::kRelu>(from, bias, columns, to); break;
    }
  }
}

}  // namespace labelmux
