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

template <Activation after, typename Value, typename T>
void activate_row(const Value& value, int64_t columns, T* to) {
  for (int64_t column = 0; column < columns; column += kLanes) {
    const int64_t count = std::min(kLanes, columns - column);
    store(activated<T, after>(value(column, count)), to + column, count);
  }
}

// to [columns] = after(value), which gives the lanes from a column on, of which so many count.
template <typename Value, typename T>
void finish_row(const Value& value, int64_t columns, Activation after, T* to) {
  switch (after) {
    case Activation::kNone: return activate_row<Activation::kNone>(value, columns, to);
    case Activation::kGelu: return activate_row<Activation::kGelu>(value, columns, to);
    case Activation::kGeluTanh: return activate_row<Activation::kGeluTanh>(value, columns, to);
    case Activation::kRelu: return activate_row<Activation::kRelu>(value, columns, to);
  }
}

}  // namespace labelmux
