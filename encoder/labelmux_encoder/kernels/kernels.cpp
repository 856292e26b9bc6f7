// Two fused CPU kernels of the frozen pass, as torch operators.
//
// labelmux::attention      disentangled attention over packed rows, no padding, no [T, T] in memory
// labelmux::add_norm       LayerNorm(x + residual)
//
// Both read float or bfloat16, compute sums and softmax in float, and have no gradient.

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/native/CPUBlas.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
#include <vector>

#include "lanes.h"

namespace {

using at::BFloat16;
using labelmux::Floats;
using labelmux::kLanes;
constexpr int64_t kStep = 16;    // block sizes are multiples: the tile of a matrix product
constexpr int64_t kBlock = 128;  // most queries, and keys, of one block
constexpr int64_t kAlignment = 64;

int64_t round_up(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

// Queries, and keys, that are scored together: few large products, whose results stay in cache.
int64_t block_for(int64_t length) { return std::min(round_up(length, kStep), kBlock); }

// How many consecutive values of the inner dimension lie together in a product's right operand.
template <typename T>
constexpr int64_t kInterleave = std::is_same_v<T, BFloat16> ? 2 : 1;

template <typename T>
void multiply(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb,
              float* c, int64_t ldc) {
  at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, /*add_C=*/false, a, b, c,
                              /*is_vnni=*/kInterleave<T> == 2);
}

void release(bool used_tiles) { at::native::cpublas::brgemm_release(used_tiles); }

// The scratch memory of one thread, laid out for the longest row of the call.
template <typename T>
struct Scratch {
  Scratch(int64_t longest, int64_t head_size) {
    const int64_t block = block_for(longest);
    const int64_t keys = round_up(longest, block);
    const int64_t bytes_of[] = {
        bytes<T>(keys * head_size),             // keys
        bytes<T>(keys * head_size),             // values
        bytes<T>(block * head_size),            // query
        bytes<T>(block * keys),                 // weights
        bytes<float>(block * keys),             // content
        bytes<float>(block * (keys + block)),   // c2p
        bytes<float>(2 * block * keys),         // p2c
        bytes<float>(block * head_size),        // context
    };
    int64_t total = kAlignment;
    for (const int64_t bytes : bytes_of) total += bytes;
    memory_.resize(total);
    auto* at = memory_.data();
    at += (kAlignment - reinterpret_cast<uintptr_t>(at) % kAlignment) % kAlignment;
    void* places[8];
    for (int index = 0; index < 8; ++index) {
      places[index] = at;
      at += bytes_of[index];
    }
    keys_ = static_cast<T*>(places[0]);
    values_ = static_cast<T*>(places[1]);
    query_ = static_cast<T*>(places[2]);
    weights_ = static_cast<T*>(places[3]);
    content_ = static_cast<float*>(places[4]);
    c2p_ = static_cast<float*>(places[5]);
    p2c_ = static_cast<float*>(places[6]);
    context_ = static_cast<float*>(places[7]);
  }

  T* keys_;         // [D, keys], interleaved
  T* values_;       // [keys, D], interleaved
  T* query_;        // [block, D]
  T* weights_;      // [block, keys], exp(logit - max)
  float* content_;  // [block, keys]
  float* c2p_;      // [block, keys + block]
  float* p2c_;      // per block of keys: [2 * block, block]
  float* context_;  // [block, D]

 private:
  template <typename U>
  static int64_t bytes(int64_t count) {
    return round_up(count * static_cast<int64_t>(sizeof(U)), kAlignment);
  }
  std::vector<unsigned char> memory_;
};

// Tables of one layer; either may be absent. Distance 0 lies at `centre` in both.
template <typename T>
struct Tables {
  const T* key;    // [heads, D, width] interleaved, distance falling
  const T* query;  // [heads, width, D], distance rising
  int64_t width;
  int64_t centre;
};

// One (row, head) of the batch.
template <typename T>
class Head {
 public:
  Head(const T* qkv, int64_t row_stride, int64_t hidden, int64_t length, int64_t head_size,
       Scratch<T>& scratch)
      : qkv_(qkv), stride_(row_stride), hidden_(hidden), length_(length), size_(head_size),
        block_(block_for(length)), keys_(round_up(length, block_)),
        scratch_(scratch) {}

  void run(const Tables<T>& tables, int64_t head, T* out) {
    pack_keys();
    pack_values();
    for (int64_t first = 0; first < length_; first += block_) {
      const int64_t rows = std::min(block_, length_ - first);
      take_queries(first, rows);
      score(tables, head, first);
      weigh(tables, rows);
      multiply<T>(block_, size_, keys_, scratch_.weights_, keys_, scratch_.values_, size_,
                  scratch_.context_, size_);
      for (int64_t row = 0; row < rows; ++row) {
        write(scratch_.context_ + row * size_, 1.0f / sums_[row], out + (first + row) * hidden_);
      }
    }
  }

 private:
  // Keys as columns; a bfloat16 pair moves as one 32-bit value.
  void pack_keys() {
    constexpr int64_t group = kInterleave<T>;
    const int64_t pairs = size_ / group;
    auto* to = reinterpret_cast<float*>(scratch_.keys_);
    labelmux::transpose(reinterpret_cast<const float*>(qkv_ + hidden_), stride_ / group, length_,
                        pairs, to, keys_);
    for (int64_t pair = 0; pair < pairs; ++pair) {
      std::fill(to + pair * keys_ + length_, to + (pair + 1) * keys_, 0.0f);
    }
  }

  void pack_values() {
    const T* values = qkv_ + 2 * hidden_;
    if constexpr (kInterleave<T> == 2) {
      for (int64_t key = 0; key < keys_; key += 2) {
        interleave(values + key * stride_, length_ - key, scratch_.values_ + key * size_);
      }
    } else {
      for (int64_t key = 0; key < length_; ++key) {
        std::memcpy(scratch_.values_ + key * size_, values + key * stride_, size_ * sizeof(T));
      }
      std::fill(scratch_.values_ + length_ * size_, scratch_.values_ + keys_ * size_, T(0));
    }
  }

  // Two rows to one of pairs; rows beyond the last real one are zeros.
  void interleave(const T* from, int64_t real_rows, T* to) {
    const auto* first = reinterpret_cast<const uint16_t*>(from);
    const auto* second = first + stride_;
    auto* pairs = reinterpret_cast<uint32_t*>(to);
    if (real_rows >= 2) {
      for (int64_t d = 0; d < size_; ++d) pairs[d] = first[d] | uint32_t{second[d]} << 16;
    } else {
      for (int64_t d = 0; d < size_; ++d) pairs[d] = real_rows == 1 ? first[d] : 0;
    }
  }

  void take_queries(int64_t first, int64_t rows) {
    for (int64_t row = 0; row < rows; ++row) {
      std::memcpy(scratch_.query_ + row * size_, qkv_ + (first + row) * stride_, size_ * sizeof(T));
    }
    std::fill(scratch_.query_ + rows * size_, scratch_.query_ + block_ * size_, T(0));
  }

  // Content scores, and both position terms for every distance that the block can see.
  void score(const Tables<T>& tables, int64_t head, int64_t first) {
    multiply<T>(block_, keys_, size_, scratch_.query_, size_, scratch_.keys_, keys_,
                scratch_.content_, keys_);
    if (tables.key != nullptr) {
      const int64_t column = tables.centre - first - (block_ - 1);
      multiply<T>(block_, keys_ + block_, size_, scratch_.query_, size_,
                  tables.key + (head * size_ * tables.width + column * kInterleave<T>),
                  tables.width, scratch_.c2p_, keys_ + block_);
    }
    if (tables.query != nullptr) {
      for (int64_t key = 0; key < keys_; key += block_) {
        const int64_t row = tables.centre + first - key - (block_ - 1);
        multiply<T>(2 * block_, block_, size_,
                    tables.query + (head * tables.width + row) * size_, size_,
                    scratch_.keys_ + key * kInterleave<T>, keys_,
                    scratch_.p2c_ + key * 2 * block_, block_);
      }
    }
  }

  // Softmax weights, not yet divided by their sum.
  void weigh(const Tables<T>& tables, int64_t rows) {
    const auto lanes = at::vec::Vectorized<int32_t>::arange(0, 1 - static_cast<int32_t>(block_));
    for (int64_t row = 0; row < rows; ++row) {
      float* logits = scratch_.content_ + row * keys_;
      const float* c2p = scratch_.c2p_ + row * (keys_ + block_) + (block_ - 1 - row);
      Floats highest(-std::numeric_limits<float>::infinity());
      for (int64_t key = 0; key < keys_; key += kLanes) {
        Floats value = Floats::loadu(logits + key);
        if (tables.key != nullptr) value = value + Floats::loadu(c2p + key);
        if (tables.query != nullptr) value = value + gather_p2c(row, key, lanes);
        if (key + kLanes > length_) value = mask_from(value, length_ - key);
        value.store(logits + key);
        highest = labelmux::higher(highest, value);
      }
      const float top = labelmux::highest_of(highest);
      sums_[row] = exponentiate(logits, top, scratch_.weights_ + row * keys_);
    }
    std::fill(scratch_.weights_ + rows * keys_, scratch_.weights_ + block_ * keys_, T(0));
  }

  Floats gather_p2c(int64_t row, int64_t key, const at::vec::Vectorized<int32_t>& lanes) {
    const int64_t within = key % block_;
    const float* from = scratch_.p2c_ + (key - within) * 2 * block_ +
                        (row - within + block_ - 1) * block_ + within;
    return at::vec::gather<4>(from, lanes);
  }

  static Floats mask_from(const Floats& value, int64_t count) {
    const Floats nothing(-std::numeric_limits<float>::infinity());
    return count <= 0 ? nothing : Floats::set(nothing, value, count);
  }

  float exponentiate(const float* logits, float top, T* weights) {
    constexpr float kLog2E = 1.4426950408889634f;
    const Floats shift(-top * kLog2E);
    Floats sum(0.0f);
    for (int64_t key = 0; key < keys_; key += kLanes) {
      const Floats power = at::vec::fmadd(Floats::loadu(logits + key), Floats(kLog2E), shift);
      const Floats weight = labelmux::exp2<T>(power);
      sum = sum + weight;
      labelmux::store(weight, weights + key);
    }
    return labelmux::sum_of(sum);
  }

  void write(const float* from, float scale, T* to) {
    for (int64_t d = 0; d < size_; d += kLanes) {
      const int64_t count = std::min(kLanes, size_ - d);
      labelmux::store(Floats::loadu(from + d, count) * Floats(scale), to + d, count);
    }
  }

  const T* qkv_;
  const int64_t stride_;
  const int64_t hidden_;
  const int64_t length_;
  const int64_t size_;
  const int64_t block_;
  const int64_t keys_;
  Scratch<T>& scratch_;
  float sums_[kBlock];
};

// First (row, head) of each of `parts` parts of about equal work. parts + 1 entries
std::vector<int64_t> share(c10::ArrayRef<int64_t> lengths, int64_t heads, int64_t parts) {
  auto work = [](int64_t length) { return length * (length + 64); };
  int64_t total = 0;
  for (const int64_t length : lengths) total += work(length) * heads;
  std::vector<int64_t> bounds(parts + 1, static_cast<int64_t>(lengths.size()) * heads);
  bounds[0] = 0;
  int64_t done = 0, part = 1, index = 0;
  for (const int64_t length : lengths) {
    for (int64_t head = 0; head < heads; ++head, ++index) {
      while (part < parts && done * parts >= total * part) bounds[part++] = index;
      done += work(length);
    }
  }
  return bounds;
}

template <typename T>
void attend(const at::Tensor& qkv, c10::ArrayRef<int64_t> lengths, const Tables<T>& tables,
            int64_t heads, at::Tensor& out) {
  const int64_t hidden = out.size(1), head_size = hidden / heads;
  const int64_t longest = *std::max_element(lengths.begin(), lengths.end());
  std::vector<int64_t> starts(lengths.size() + 1, 0);
  for (size_t row = 0; row < lengths.size(); ++row) starts[row + 1] = starts[row] + lengths[row];
  const T* from = qkv.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  const int64_t parts = std::min<int64_t>(at::get_num_threads(), lengths.size() * heads);
  const auto bounds = share(lengths, heads, parts);
  at::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(longest, head_size);
    for (int64_t index = bounds[begin]; index < bounds[end]; ++index) {
      const int64_t row = index / heads, head = index % heads;
      Head<T>(from + starts[row] * 3 * hidden + head * head_size, 3 * hidden, hidden, lengths[row],
              head_size, scratch)
          .run(tables, head, to + starts[row] * hidden + head * head_size);
    }
    release(kInterleave<T> == 2);
  });
}

template <typename T>
Tables<T> tables_of(const std::optional<at::Tensor>& key, const std::optional<at::Tensor>& query,
                    int64_t centre) {
  Tables<T> tables{nullptr, nullptr, 0, centre};
  if (key.has_value()) {
    tables.key = key->const_data_ptr<T>();
    tables.width = key->size(2);
  }
  if (query.has_value()) {
    tables.query = query->const_data_ptr<T>();
    tables.width = query->size(1);
  }
  return tables;
}

// qkv [N, 3H] contiguous, query part scaled; out [N, H] contiguous; tables as in kernels.py.
void attention(const at::Tensor& qkv, c10::ArrayRef<int64_t> lengths,
               const std::optional<at::Tensor>& key, const std::optional<at::Tensor>& query,
               int64_t centre, int64_t heads, at::Tensor& out) {
  TORCH_CHECK(qkv.is_contiguous() && out.is_contiguous(), "attention takes contiguous tensors");
  TORCH_CHECK(qkv.size(1) == 3 * out.size(1) && !lengths.empty(), "attention: wrong shapes");
  if (qkv.scalar_type() == at::kBFloat16) {
    attend<BFloat16>(qkv, lengths, tables_of<BFloat16>(key, query, centre), heads, out);
  } else {
    attend<float>(qkv, lengths, tables_of<float>(key, query, centre), heads, out);
  }
}

template <typename T>
void add_norm_row(const T* x, const T* residual, const float* weight, const float* bias,
                  float epsilon, int64_t hidden, float* buffer, T* out) {
  Floats sum(0.0f);
  float tail = 0.0f;
  const int64_t whole = hidden / kLanes * kLanes;
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats value = labelmux::load(x + h) + labelmux::load(residual + h);
    value.store(buffer + h);
    sum = sum + value;
  }
  for (int64_t h = whole; h < hidden; ++h) {
    buffer[h] = static_cast<float>(x[h]) + static_cast<float>(residual[h]);
    tail += buffer[h];
  }
  const float mean = (labelmux::sum_of(sum) + tail) / hidden;
  Floats squares(0.0f);
  tail = 0.0f;
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats centred = Floats::loadu(buffer + h) - Floats(mean);
    squares = at::vec::fmadd(centred, centred, squares);
  }
  for (int64_t h = whole; h < hidden; ++h) tail += (buffer[h] - mean) * (buffer[h] - mean);
  const float variance = (labelmux::sum_of(squares) + tail) / hidden;
  const float scale = 1.0f / std::sqrt(variance + epsilon);
  for (int64_t h = 0; h < whole; h += kLanes) {
    const Floats normal = (Floats::loadu(buffer + h) - Floats(mean)) * Floats(scale);
    const Floats value = at::vec::fmadd(normal, Floats::loadu(weight + h), Floats::loadu(bias + h));
    labelmux::store(value, out + h);
  }
  for (int64_t h = whole; h < hidden; ++h) {
    out[h] = T((buffer[h] - mean) * scale * weight[h] + bias[h]);
  }
}

template <typename T>
void add_norm_all(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
                  const at::Tensor& bias, double epsilon, at::Tensor& out) {
  const int64_t hidden = x.size(1);
  const T* x_ = x.const_data_ptr<T>();
  const T* residual_ = residual.const_data_ptr<T>();
  const float* weight_ = weight.const_data_ptr<float>();
  const float* bias_ = bias.const_data_ptr<float>();
  T* out_ = out.mutable_data_ptr<T>();
  at::parallel_for(0, x.size(0), std::max<int64_t>(1, 8192 / hidden), [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(hidden);
    for (int64_t row = begin; row < end; ++row) {
      add_norm_row<T>(x_ + row * hidden, residual_ + row * hidden, weight_, bias_,
                      static_cast<float>(epsilon), hidden, buffer.data(), out_ + row * hidden);
    }
  });
}

// x, residual and out [N, H] contiguous, of one dtype; weight and bias [H] float.
void add_norm(const at::Tensor& x, const at::Tensor& residual, const at::Tensor& weight,
              const at::Tensor& bias, double epsilon, at::Tensor& out) {
  TORCH_CHECK(x.is_contiguous() && residual.is_contiguous() && out.is_contiguous(),
              "add_norm takes contiguous tensors");
  if (x.scalar_type() == at::kBFloat16) {
    add_norm_all<BFloat16>(x, residual, weight, bias, epsilon, out);
  } else {
    add_norm_all<float>(x, residual, weight, bias, epsilon, out);
  }
}

}  // namespace

TORCH_LIBRARY(labelmux, library) {
  library.def(
      "attention(Tensor qkv, int[] lengths, Tensor? key, Tensor? query, int centre, int heads, "
      "Tensor(a!) out) -> ()");
  library.def(
      "add_norm(Tensor x, Tensor residual, Tensor weight, Tensor bias, float epsilon, "
      "Tensor(a!) out) -> ()");
}

TORCH_LIBRARY_IMPL(labelmux, CPU, library) {
  library.impl("attention", &attention);
  library.impl("add_norm", &add_norm);
}
