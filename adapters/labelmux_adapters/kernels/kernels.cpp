// Y-Tuning readouts on a CPU, as torch operators over the packed features of a batch.
//
// labelmux::state_statistics   mean and scale of every token's state in every layer
// labelmux::ytuning_readout    logits of rows (text, adapter) of several stacks
//
// A group is the rows of one adapter. Its weights are read once for a block of rows; nothing of a
// text is normalised, padded or copied in memory: the mix over layers is formed in the cache.
// Sums, norms and softmax are in float.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "lanes.h"
#include "parallel.h"
#include "products.h"

namespace {

using at::BFloat16;
using labelmux::Floats;
using labelmux::kInterleave;
using labelmux::kLanes;
using labelmux::multiply;
using labelmux::round_up;

constexpr float kStateEpsilon = 1e-5f;   // of normalise_states
constexpr float kNormEpsilon = 1e-5f;    // of torch's LayerNorm
constexpr int64_t kBlockVectors = 64;    // label vectors of a block of rows, or those of one row
constexpr int64_t kBlockTokens = 256;    // tokens of a block of rows, or those of one row
constexpr size_t kConstants = 13;        // tensors of a stack

// f(begin, count) over [0, size) in steps of a vector register.
template <typename F>
[[gnu::always_inline]] inline void for_lanes(int64_t size, const F f) {
  int64_t at = 0;
  for (; at + kLanes <= size; at += kLanes) f(at, kLanes);
  if (at < size) f(at, size - at);
}

// Mean, and one over the deviation.
struct Moments {
  float mean;
  float scale;
};

template <typename T>
Moments moments_of(const T* values, int64_t size, float epsilon) {
  Floats sum(0.0f), squares(0.0f);
  for_lanes(size, [&](int64_t at, int64_t count) { sum = sum + labelmux::load(values + at, count); });
  const float mean = labelmux::sum_of(sum) / size;
  for_lanes(size, [&](int64_t at, int64_t count) {
    Floats centred = labelmux::load(values + at, count) - Floats(mean);
    if (count < kLanes) centred = Floats::set(Floats(0.0f), centred, count);
    squares = at::vec::fmadd(centred, centred, squares);
  });
  return {mean, 1.0f / std::sqrt(labelmux::sum_of(squares) / size + epsilon)};
}

template <typename T>
void statistics_of(const at::Tensor& features, at::Tensor& out) {
  const int64_t tokens = features.size(0) * features.size(1), hidden = features.size(2);
  const T* from = features.const_data_ptr<T>();
  float* to = out.mutable_data_ptr<float>();
  labelmux::run_ranges(tokens, 256, [=](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const Moments moments = moments_of(from + token * hidden, hidden, kStateEpsilon);
      to[2 * token] = moments.mean;
      to[2 * token + 1] = moments.scale;
    }
  });
}

// features [L+1, N, H] -> out [L+1, N, 2]: mean, and one over the deviation
at::Tensor state_statistics(const at::Tensor& features) {
  at::Tensor out = at::empty({features.size(0), features.size(1), 2}, at::kFloat);
  if (features.scalar_type() == at::kBFloat16) {
    statistics_of<BFloat16>(features, out);
  } else {
    statistics_of<float>(features, out);
  }
  return out;
}

// The batch's texts.
template <typename T>
struct Batch {
  const T* features;
  const float* statistics;
  int64_t layers;
  int64_t tokens;
  int64_t hidden;
  c10::ArrayRef<int64_t> starts;
  c10::ArrayRef<int64_t> lengths;
};

// A stack's constants, in the order of KernelStack; weights interleaved.
template <typename T>
struct Stack {
  Stack(at::TensorList of, int64_t heads_, bool absorbs_)
      : mix(of[0].const_data_ptr<float>()), queries(of[1].const_data_ptr<T>()),
        values(of[2].const_data_ptr<T>()), out(of[3].const_data_ptr<T>()),
        labels(of[4].const_data_ptr<float>()), pooled(of[5].const_data_ptr<T>()),
        ffn_in(of[6].const_data_ptr<T>()), ffn_in_bias(of[7].const_data_ptr<float>()),
        ffn_out(of[8].const_data_ptr<T>()), cross_scale(of[9].const_data_ptr<float>()),
        cross_shift(of[10].const_data_ptr<float>()), final_scale(of[11].const_data_ptr<float>()),
        final_shift(of[12].const_data_ptr<float>()), layers(of[0].size(1)), heads(heads_),
        vectors(of[4].size(1)), width(of[4].size(2)), hidden(of[5].size(1)), ffn(of[8].size(1)),
        depth(width / heads_), absorbs(absorbs_) {}

  const float* mix;
  const T* queries;  // absorbed: [H, heads * C]; formed: [heads, C, D], not interleaved
  const T* values;   // absorbed: [heads, H, D]; formed: keys and values [H, 2W]
  const T* out;      // [W, W]
  const float* labels;
  const T* pooled;  // [H, W]
  const T* ffn_in;  // [W, F]
  const float* ffn_in_bias;
  const T* ffn_out;  // [F, W]
  const float* cross_scale;
  const float* cross_shift;
  const float* final_scale;
  const float* final_shift;
  int64_t layers, heads, vectors, width, hidden, ffn, depth;
  bool absorbs;

  // How many label vectors are computed, the task's among them. Absorbed queries of all heads lie
  // side by side, padding among them.
  int64_t vectors_for(int64_t labels) const { return absorbs ? vectors : labels + 1; }
};

// Memory that grows to what was asked of it, and is not cleared.
template <typename T>
class Buffer {
 public:
  T* at_least(int64_t count) {
    if (count > size_) {
      memory_.reset(static_cast<T*>(::operator new(count * sizeof(T), std::align_val_t{64})));
      size_ = count;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> memory_;
  int64_t size_ = 0;
};

template <typename T>
struct Work {
  ~Work() { labelmux::release(kInterleave<T> == 2); }

  Buffer<T> mixed, mixed_pairs, pooled, keys, values, weights, context, attended, normal, inner;
  Buffer<float> formed, logits, turned, wide, states, products, sums;
};

// Rows of one adapter, all of a batch's or as many as are read together.
struct Group {
  int64_t stack;
  int64_t slot;
  int64_t labels;
  int64_t first;  // row
  int64_t rows;
  int64_t out;  // where the first row's logits are; the next one's follow
};

// Some rows of one adapter.
template <typename T>
class Block {
 public:
  Block(const Batch<T>& batch, const Stack<T>& stack, const Group& group, const int64_t* texts,
        Work<T>& work)
      : batch_(batch), stack_(stack), slot_(group.slot), labels_(group.labels),
        vectors_(stack.vectors_for(group.labels)), texts_(texts), rows_(group.rows), work_(work),
        attended_(work.attended.at_least(rows_ * vectors_ * stack.width)) {}

  // out [rows, K]
  void run(float* out) {
    mix();
    stack_.absorbs ? attend_features() : attend_keys();
    read_out(out);
  }

 private:
  int64_t length(int64_t row) const { return batch_.lengths[texts_[row]]; }

  // The adapter's mix of normalised layers, of every token, and its mean of every row.
  void mix() {
    const int64_t hidden = stack_.hidden;
    int64_t tokens = 0;
    for (int64_t row = 0; row < rows_; ++row) tokens += round_up(length(row), 2);
    mixed_ = work_.mixed.at_least(tokens * hidden);
    pooled_ = work_.pooled.at_least(rows_ * hidden);
    float* sum = work_.sums.at_least(round_up(hidden, kLanes));
    T* to = mixed_;
    for (int64_t row = 0; row < rows_; ++row) {
      std::fill(sum, sum + round_up(hidden, kLanes), 0.0f);
      const int64_t start = batch_.starts[texts_[row]];
      for (int64_t token = 0; token < length(row); ++token, to += hidden) {
        mix_token(start + token, sum, to);
      }
      if (length(row) % 2) {
        std::fill(to, to + hidden, T(0));
        to += hidden;
      }
      const Floats scale(1.0f / length(row));
      for_lanes(hidden, [&](int64_t at, int64_t count) {
        labelmux::store(Floats::loadu(sum + at) * scale, pooled_ + row * hidden + at, count);
      });
    }
  }

  void mix_token(int64_t token, float* sum, T* to) {
    constexpr int64_t kMostLayers = 64;
    float factor[kMostLayers], shift = 0.0f;
    const float* weights = stack_.mix + slot_ * stack_.layers;
    for (int64_t layer = 0; layer < stack_.layers; ++layer) {
      const float* of = batch_.statistics + 2 * (layer * batch_.tokens + token);
      factor[layer] = weights[layer] * of[1];
      shift -= factor[layer] * of[0];
    }
    const int64_t layer_stride = batch_.tokens * stack_.hidden;
    const T* from = batch_.features + token * stack_.hidden;
    for_lanes(stack_.hidden, [&](int64_t at, int64_t count) {
      Floats value(shift);
      for (int64_t layer = 0; layer < stack_.layers; ++layer) {
        value = at::vec::fmadd(labelmux::load(from + layer * layer_stride + at, count),
                               Floats(factor[layer]), value);
      }
      (Floats::loadu(sum + at) + value).store(sum + at);
      labelmux::store(value, to + at, count);
    });
  }

  // Few labels: queries that have absorbed the key projection meet the mixed states themselves.
  void attend_features() {
    const int64_t hidden = stack_.hidden, columns = stack_.heads * vectors_;
    T* context = work_.context.at_least(stack_.heads * rows_ * vectors_ * hidden);
    float* wide = work_.wide.at_least(columns * hidden);
    const T* mixed = mixed_;
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t tokens = length(row), padded = round_up(tokens, 2);
      float* logits = work_.logits.at_least(tokens * columns);
      multiply<T>(tokens, columns, hidden, mixed, hidden,
                  stack_.queries + slot_ * hidden * columns, columns, logits, columns);
      T* weights = work_.weights.at_least(columns * padded);
      softmax_of_columns(logits, tokens, columns, padded, weights);
      const T* pairs = pair_up(mixed, padded, hidden, hidden, work_.mixed_pairs);
      multiply<T>(columns, hidden, padded, weights, padded, pairs, hidden, wide, hidden);
      for (int64_t head = 0; head < stack_.heads; ++head) {
        narrow(wide + head * vectors_ * hidden, vectors_ * hidden,
               context + (head * rows_ + row) * vectors_ * hidden);
      }
      mixed += padded * hidden;
    }
    const int64_t vectors = rows_ * vectors_, depth = stack_.depth;
    float* read = work_.products.at_least(vectors * stack_.width);
    for (int64_t head = 0; head < stack_.heads; ++head) {
      multiply<T>(vectors, depth, hidden, context + head * vectors * hidden, hidden,
                  stack_.values + (slot_ * stack_.heads + head) * hidden * depth, depth,
                  read + head * depth, stack_.width);
    }
    narrow(read, vectors * stack_.width, attended_);
  }

  // Many labels: keys and values of the text, formed.
  void attend_keys() {
    const int64_t hidden = stack_.hidden, width = stack_.width, depth = stack_.depth;
    const T* mixed = mixed_;
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t tokens = length(row), padded = round_up(tokens, 2);
      float* formed = work_.formed.at_least(padded * 2 * width);
      multiply<T>(padded, 2 * width, hidden, mixed, hidden,
                  stack_.values + slot_ * hidden * 2 * width, 2 * width, formed, 2 * width);
      std::fill(formed + tokens * 2 * width, formed + padded * 2 * width, 0.0f);
      float* read = work_.products.at_least(vectors_ * width);
      for (int64_t head = 0; head < stack_.heads; ++head) {
        attend_keys_of(formed + head * depth, tokens, padded, head, read + head * depth);
      }
      narrow(read, vectors_ * width, attended_ + row * vectors_ * width);
      mixed += padded * hidden;
    }
  }

  // formed: this head's keys, and its values `width` further on; a token's are 2 * width apart.
  void attend_keys_of(const float* formed, int64_t tokens, int64_t padded, int64_t head,
                      float* read) {
    const int64_t width = stack_.width, depth = stack_.depth, vectors = vectors_;
    T* keys = work_.keys.at_least(padded * depth);
    T* values = work_.values.at_least(padded * depth);
    for (int64_t token = 0; token < padded; ++token) {
      narrow(formed + token * 2 * width, depth, keys + token * depth);
      narrow(formed + token * 2 * width + width, depth, values + token * depth);
    }
    constexpr int64_t group = kInterleave<T>;
    auto* columns = reinterpret_cast<float*>(work_.context.at_least(padded * depth));
    labelmux::transpose(reinterpret_cast<const float*>(keys), depth / group, padded, depth / group,
                        columns, padded);
    float* logits = work_.logits.at_least(vectors * padded);
    multiply<T>(vectors, padded, depth, stack_.queries + (slot_ * stack_.heads + head) * stack_.vectors * depth,
                depth, reinterpret_cast<const T*>(columns), padded, logits, padded);
    T* weights = work_.weights.at_least(vectors * padded);
    for (int64_t vector = 0; vector < vectors; ++vector) {
      softmax_of_row(logits + vector * padded, tokens, padded, weights + vector * padded);
    }
    const T* pairs = pair_up(values, padded, depth, depth, work_.mixed_pairs);
    multiply<T>(vectors, depth, padded, weights, padded, pairs, depth, read, width);
  }

  // What follows the attention: projection, labels, pooled features, feed-forward block, scores.
  void read_out(float* out) {
    const int64_t vectors = rows_ * vectors_, width = stack_.width, ffn = stack_.ffn;
    float* states = work_.states.at_least(vectors * width);
    multiply<T>(vectors, width, width, attended_, width, stack_.out + slot_ * width * width, width,
                states, width);
    float* pooled = work_.products.at_least(std::max(rows_ * width, vectors * width));
    multiply<T>(rows_, width, stack_.hidden, pooled_, stack_.hidden,
                stack_.pooled + slot_ * stack_.hidden * width, width, pooled, width);
    T* normal = work_.normal.at_least(vectors * width);
    for (int64_t vector = 0; vector < vectors; ++vector) {
      const int64_t label = vector % vectors_;
      enter(states + vector * width, stack_.labels + (slot_ * stack_.vectors + label) * width,
            label ? nullptr : pooled + vector / vectors_ * width, normal + vector * width);
    }
    float* wide = work_.wide.at_least(vectors * ffn);
    multiply<T>(vectors, ffn, width, normal, width, stack_.ffn_in + slot_ * width * ffn, ffn, wide,
                ffn);
    T* inner = work_.inner.at_least(vectors * ffn);
    for (int64_t vector = 0; vector < vectors; ++vector) {
      activate(wide + vector * ffn, inner + vector * ffn);
    }
    float* products = work_.products.at_least(vectors * width);
    multiply<T>(vectors, width, ffn, inner, ffn, stack_.ffn_out + slot_ * ffn * width, width,
                products, width);
    for (int64_t row = 0; row < rows_; ++row) {
      const int64_t first = row * vectors_;
      for (int64_t label = 0; label < vectors_; ++label) {
        leave(states + (first + label) * width, products + (first + label) * width);
      }
      for (int64_t label = 0; label < labels_; ++label) {
        out[row * labels_ + label] =
            dot(states + first * width, states + (first + 1 + label) * width);
      }
    }
  }

  // state = norm(state + labels + pooled), without scale and shift
  void enter(float* state, const float* labels, const float* pooled, T* normal) {
    const int64_t width = stack_.width;
    for (int64_t w = 0; w < width; ++w) state[w] += labels[w] + (pooled ? pooled[w] : 0.0f);
    normalise(state);
    narrow(state, width, normal);
  }

  void activate(const float* from, T* to) {
    const float* bias = stack_.ffn_in_bias + slot_ * stack_.ffn;
    for_lanes(stack_.ffn, [&](int64_t at, int64_t count) {
      const Floats x = labelmux::load(from + at, count) + labelmux::load(bias + at, count);
      labelmux::store(labelmux::gelu<T>(x), to + at, count);
    });
  }

  // state = norm(state * cross_scale + cross_shift + product) * final_scale + final_shift
  void leave(float* state, const float* product) {
    const int64_t width = stack_.width, first = slot_ * width;
    for (int64_t w = 0; w < width; ++w) {
      state[w] = state[w] * stack_.cross_scale[first + w] + stack_.cross_shift[first + w] + product[w];
    }
    normalise(state);
    for (int64_t w = 0; w < width; ++w) {
      state[w] = state[w] * stack_.final_scale[first + w] + stack_.final_shift[first + w];
    }
  }

  void normalise(float* state) {
    const int64_t width = stack_.width;
    const Moments moments = moments_of(state, width, kNormEpsilon);
    for (int64_t w = 0; w < width; ++w) state[w] = (state[w] - moments.mean) * moments.scale;
  }

  float dot(const float* a, const float* b) {
    Floats sum(0.0f);
    for_lanes(stack_.width, [&](int64_t at, int64_t count) {
      sum = at::vec::fmadd(labelmux::load(a + at, count), labelmux::load(b + at, count), sum);
    });
    return labelmux::sum_of(sum) / std::sqrt(static_cast<float>(stack_.width));
  }

  static void narrow(const float* from, int64_t count, T* to) {
    for_lanes(count, [=](int64_t at, int64_t some) {
      labelmux::store(labelmux::load(from + at, some), to + at, some);
    });
  }

  // Rows as a product's right operand.
  static const T* pair_up(const T* from, int64_t rows, int64_t columns, int64_t stride,
                          Buffer<T>& to) {
    if constexpr (kInterleave<T> == 1) {
      return from;
    } else {
      T* pairs = to.at_least(rows * columns);
      for (int64_t row = 0; row < rows; row += 2) {
        labelmux::interleave(from + row * stride, stride, 2, columns, pairs + row * columns);
      }
      return pairs;
    }
  }

  static void softmax_of_row(float* logits, int64_t tokens, int64_t padded, T* weights) {
    float top = -std::numeric_limits<float>::infinity();
    for (int64_t token = 0; token < tokens; ++token) top = std::max(top, logits[token]);
    constexpr float kLog2E = 1.4426950408889634f;
    Floats sum(0.0f);
    for_lanes(tokens, [&](int64_t at, int64_t count) {
      const Floats power = (Floats::loadu(logits + at, count) - Floats(top)) * Floats(kLog2E);
      Floats weight = labelmux::exp2<T>(power);
      if (count < kLanes) weight = Floats::set(Floats(0.0f), weight, count);
      sum = sum + weight;
      weight.store(logits + at, count);
    });
    const Floats scale(1.0f / labelmux::sum_of(sum));
    for_lanes(tokens, [&](int64_t at, int64_t count) {
      labelmux::store(Floats::loadu(logits + at, count) * scale, weights + at, count);
    });
    std::fill(weights + tokens, weights + padded, T(0));
  }

  // Over the tokens, for every column; the weights come out as [columns, padded].
  void softmax_of_columns(float* logits, int64_t tokens, int64_t columns, int64_t padded,
                          T* weights) {
    constexpr float kLog2E = 1.4426950408889634f;
    for_lanes(columns, [&](int64_t at, int64_t count) {
      Floats top(-std::numeric_limits<float>::infinity());
      for (int64_t token = 0; token < tokens; ++token) {
        top = labelmux::higher(top, Floats::loadu(logits + token * columns + at, count));
      }
      Floats sum(0.0f);
      for (int64_t token = 0; token < tokens; ++token) {
        float* place = logits + token * columns + at;
        const Floats weight =
            labelmux::exp2<T>((Floats::loadu(place, count) - top) * Floats(kLog2E));
        sum = sum + weight;
        weight.store(place, count);
      }
      for (int64_t token = 0; token < tokens; ++token) {
        float* place = logits + token * columns + at;
        (Floats::loadu(place, count) / sum).store(place, count);
      }
    });
    float* turned = work_.turned.at_least(columns * padded);
    labelmux::transpose(logits, columns, tokens, columns, turned, padded);
    for (int64_t column = 0; column < columns; ++column) {
      narrow(turned + column * padded, tokens, weights + column * padded);
      std::fill(weights + column * padded + tokens, weights + (column + 1) * padded, T(0));
    }
  }

  const Batch<T>& batch_;
  const Stack<T>& stack_;
  const int64_t slot_;
  const int64_t labels_;
  const int64_t vectors_;  // label vectors that are computed, the task's among them
  const int64_t* texts_;
  const int64_t rows_;
  Work<T>& work_;
  T* attended_;
  T* mixed_ = nullptr;   // row after row, an even number of tokens each
  T* pooled_ = nullptr;  // [rows, H]
};

// The stacks' rows, adapter by adapter.
std::vector<Group> groups_of(c10::ArrayRef<int64_t> stacks, c10::ArrayRef<int64_t> slots,
                             c10::ArrayRef<int64_t> labels, c10::ArrayRef<int64_t> first_rows) {
  std::vector<Group> groups;
  int64_t out = 0;
  for (size_t at = 0; at < slots.size(); ++at) {
    const int64_t rows = first_rows[at + 1] - first_rows[at];
    groups.push_back({stacks[at], slots[at], labels[at], first_rows[at], rows, out});
    out += rows * labels[at];
  }
  return groups;
}

// Blocks of rows that fit the caches.
template <typename T>
std::vector<Group> divide(const std::vector<Group>& groups, const std::vector<Stack<T>>& stacks,
                          c10::ArrayRef<int64_t> texts, c10::ArrayRef<int64_t> lengths) {
  std::vector<Group> blocks;
  for (Group left : groups) {
    const int64_t vectors = stacks[left.stack].vectors_for(left.labels);
    const int64_t most = std::max<int64_t>(1, kBlockVectors / vectors);
    while (left.rows) {
      Group block = left;
      int64_t tokens = 0;
      for (block.rows = 0; block.rows < std::min(left.rows, most); ++block.rows) {
        tokens += lengths[texts[left.first + block.rows]];
        if (block.rows && tokens > kBlockTokens) break;
      }
      blocks.push_back(block);
      left.first += block.rows;
      left.out += block.rows * left.labels;
      left.rows -= block.rows;
    }
  }
  return blocks;
}

template <typename T>
void readout_as(const at::Tensor& features, const at::Tensor& statistics,
                c10::ArrayRef<int64_t> starts, c10::ArrayRef<int64_t> lengths,
                at::TensorList constants, c10::ArrayRef<int64_t> heads,
                c10::ArrayRef<int64_t> absorbs, const std::vector<Group>& groups,
                c10::ArrayRef<int64_t> texts, float* out) {
  const Batch<T> batch{features.const_data_ptr<T>(), statistics.const_data_ptr<float>(),
                       features.size(0), features.size(1), features.size(2), starts, lengths};
  std::vector<Stack<T>> stacks;
  for (size_t at = 0; at < heads.size(); ++at) {
    stacks.emplace_back(constants.slice(at * kConstants, kConstants), heads[at], absorbs[at] != 0);
  }
  const auto blocks = divide(groups, stacks, texts, lengths);
  labelmux::run_parts<Work<T>>(blocks.size(), [&](int64_t place, Work<T>& work) {
    const Group& block = blocks[place];
    Block<T>(batch, stacks[block.stack], block, texts.data() + block.first, work)
        .run(out + block.out);
  });
}

// Rows first_rows[g] to first_rows[g + 1] are group g's, read by slots[g] of stacks[g], which has
// labels[g]; texts[row] is the text of a row. heads and absorbs are of each stack. features
// [L+1, N, H] and weights of one dtype. Rows' logits one after the other, float
at::Tensor ytuning_readout(const at::Tensor& features, const at::Tensor& statistics,
                           c10::ArrayRef<int64_t> starts, c10::ArrayRef<int64_t> lengths,
                           at::TensorList constants, c10::ArrayRef<int64_t> heads,
                           c10::ArrayRef<int64_t> absorbs, c10::ArrayRef<int64_t> stacks,
                           c10::ArrayRef<int64_t> slots, c10::ArrayRef<int64_t> labels,
                           c10::ArrayRef<int64_t> first_rows, c10::ArrayRef<int64_t> texts) {
  TORCH_CHECK(features.is_contiguous() && constants.size() == kConstants * heads.size(),
              "readout: wrong arguments");
  const auto groups = groups_of(stacks, slots, labels, first_rows);
  const int64_t logits = groups.empty() ? 0 : groups.back().out + groups.back().rows * groups.back().labels;
  at::Tensor out = at::empty({logits}, at::kFloat);
  const auto read = features.scalar_type() == at::kBFloat16 ? readout_as<BFloat16> : readout_as<float>;
  read(features, statistics, starts, lengths, constants, heads, absorbs, groups, texts,
       out.mutable_data_ptr<float>());
  return out;
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(labelmux, library) {
  library.def("state_statistics(Tensor features) -> Tensor");
  library.def(
      "ytuning_readout(Tensor features, Tensor statistics, int[] starts, int[] lengths, "
      "Tensor[] constants, int[] heads, int[] absorbs, int[] stacks, int[] slots, int[] labels, "
      "int[] first_rows, int[] texts) -> Tensor");
}

TORCH_LIBRARY_IMPL(labelmux, CPU, library) {
  library.impl("state_statistics", &state_statistics);
  library.impl("ytuning_readout", &ytuning_readout);
}
