// The edits of a batch on packed rows: what `labelmux_encoder.edits` says, for one chunk of rows.
//
// Each row that carries an edit is changed where it lies; no other row is touched. Products have a
// multiple of kTile tokens, so that few sizes are ever compiled.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <c10/util/ArrayRef.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "lanes.h"
#include "norm.h"
#include "products.h"

namespace labelmux {

// In the order of `_KINDS` and `_SITES` in `kernel_edits.py`.
enum class Kind : int64_t { kSpecialTokenShift, kLowRank, kPrefix, kBottleneck, kShift, kScale };
enum class Site : int64_t {
  kNone, kPositionQuery, kPositionKey, kQuery, kKey, kValue, kContext, kAttentionOut,
  kAttentionNorm, kFfnIn, kInner, kFfnOut, kFfnNorm
};

// The tables' sites, which have no tokens.
inline bool of_positions(Site site) {
  return site == Site::kPositionQuery || site == Site::kPositionKey;
}

// The stacked tensors of one edit, and which entry each row of the batch carries.
struct Edit {
  static constexpr int64_t kTensors = 6;  // four of the edit's own, then its gate's

  // An entry's values at a layer; null where the edit has no such tensor.
  template <typename V>
  const V* at(int64_t tensor, int64_t entry, int64_t layer) const {
    const at::Tensor& of = tensors[tensor];
    if (!of.numel()) return nullptr;
    return of.const_data_ptr<V>() + (entry * of.size(1) + layer) * of.stride(1);
  }

  Kind kind;
  Site site;
  int64_t length;  // of a prefix
  const at::Tensor* tensors;
  const int64_t* entries;  // of each row; -1: none
};

struct Edits {
  bool any(Site site) const {
    return std::any_of(all.begin(), all.end(), [&](const Edit& edit) { return edit.site == site; });
  }

  std::vector<Edit> all;
  c10::ArrayRef<int64_t> special;         // places of special tokens in their rows, row after row
  c10::ArrayRef<int64_t> special_starts;  // where each row's begin, and the end
};

// What a row attends to besides itself.
template <typename T>
struct RowPrefix {
  const T* keys = nullptr;    // [heads, D, padded()] interleaved
  const T* values = nullptr;  // [heads, padded(), D] interleaved
  int64_t count = 0;
  float gate = 1.0f;

  int64_t padded() const { return round_up(count, 16); }
};

// Tokens at a site: `width` values each, `stride` apart; or a table's lines, one for each distance.
template <typename T>
struct Tokens {
  T* at(int64_t token) const { return data + token * stride; }

  T* data;
  int64_t stride;
  int64_t width;
  int64_t count;  // that there is room for
};

template <typename T>
Tokens<T> tokens_of(at::Tensor& x) {
  return {x.mutable_data_ptr<T>(), x.stride(0), x.size(1), x.size(0)};
}

template <typename T>
Tokens<const T> source_of(const at::Tensor& x) {
  return {x.const_data_ptr<T>(), x.stride(0), x.size(1), x.size(0)};
}

// The edits of the rows of one chunk.
template <typename T>
class ChunkEdits {
 public:
  ChunkEdits(const Edits& edits, int64_t first_row, c10::ArrayRef<int64_t> lengths)
      : edits_(edits), lengths_(lengths) {
    int64_t start = 0;
    for (size_t row = 0; row < lengths.size(); ++row) {
      for (const Edit& edit : edits.all) {
        const int64_t batch_row = first_row + static_cast<int64_t>(row);
        const int64_t entry = edit.entries[batch_row];
        if (entry >= 0) carried_.push_back({&edit, batch_row, static_cast<int64_t>(row), entry, start});
      }
      start += lengths[row];
    }
    gates_.assign(carried_.size(), 1.0f);
  }

  bool empty() const { return carried_.empty(); }

  bool any(Site site) const {
    return std::any_of(carried_.begin(), carried_.end(),
                       [&](const Carried& one) { return one.edit->site == site; });
  }

  // A layer's input: special tokens shifted, gates read.
  void enter(int64_t layer, at::Tensor& hidden) {
    const auto tokens = tokens_of<T>(hidden);
    each([&](Carried& one, float& gate) {
      if (one.edit->kind != Kind::kSpecialTokenShift) return;
      gate = read_gate(one, layer, tokens.at(one.start), tokens.stride, tokens.width);
      shift_special(one, layer, gate, tokens);
    });
    each([&](Carried& one, float& gate) {
      if (one.edit->kind == Kind::kSpecialTokenShift || one.edit->kind == Kind::kBottleneck) return;
      gate = read_gate(one, layer, tokens.at(one.start), tokens.stride, tokens.width);
    });
  }

  // What each row attends to besides itself; empty if none does.
  std::vector<RowPrefix<T>> prefixes(int64_t layer) const {
    std::vector<RowPrefix<T>> found;
    for (size_t place = 0; place < carried_.size(); ++place) {
      const Carried& one = carried_[place];
      if (one.edit->kind != Kind::kPrefix) continue;
      found.resize(lengths_.size());
      found[one.row] = {one.edit->template at<T>(0, one.entry, layer),
                        one.edit->template at<T>(1, one.entry, layer), one.edit->length,
                        gates_[place]};
    }
    return found;
  }

  // What a site gave; `source` is what its linear map read.
  void at(Site site, int64_t layer, const Tokens<T>& found, const at::Tensor* source = nullptr) {
    each([&](Carried& one, float& gate) {
      if (one.edit->site != site) return;
      const Span span{one.start, lengths_[one.row]};
      change(one, layer, gate, span, source ? source_of<T>(*source) : Tokens<const T>{}, found);
    });
  }

  // One of a row's position tables; `source` is what it is a projection of.
  void at_table(Site site, int64_t layer, int64_t row, const Tokens<const T>& source,
                const Tokens<T>& found) const {
    for (size_t place = 0; place < carried_.size(); ++place) {
      const Carried& one = carried_[place];
      if (one.row != row || one.edit->site != site) continue;
      change(one, layer, gates_[place], {0, found.count}, source, found);
    }
  }

  // The rows of the chunk whose position tables are their own.
  std::vector<int64_t> rows_with_tables() const {
    std::vector<int64_t> found;
    for (const Carried& one : carried_) {
      const bool known = !found.empty() && found.back() == one.row;
      if (of_positions(one.edit->site) && !known) found.push_back(one.row);
    }
    return found;
  }

  // The feed-forward block's output, before its residual `attended` and its norm.
  void bottleneck(int64_t layer, const at::Tensor& attended, const Norm& norm, at::Tensor& outer) {
    const auto tokens = tokens_of<T>(outer);
    each([&](Carried& one, float& gate) {
      if (one.edit->kind == Kind::kBottleneck) {
        add_bottleneck(one, layer, gate, attended.const_data_ptr<T>(), norm, tokens);
      }
    });
  }

  // Every row that carries an edit at a site: first token, tokens.
  template <typename F>
  void each_row(Site site, const F& f) const {
    int64_t last = -1;
    for (const Carried& one : carried_) {
      if (one.edit->site == site && one.row != last) f(one.start, lengths_[one.row]);
      if (one.edit->site == site) last = one.row;
    }
  }

 private:
  static constexpr int64_t kTile = 16;
  static constexpr int64_t kBlock = 32;  // tokens of one product

  // Scratch memory, kept from call to call.
  struct Room {
    template <typename V>
    static V* of(std::vector<V>& part, int64_t count) {
      if (static_cast<int64_t>(part.size()) < count) part.resize(count);
      return part.data();
    }

    std::vector<T> tokens, narrow;
    std::vector<float> low, added;
  };

  static Room& room_of_this_thread() {
    static thread_local Room room;
    return room;
  }

  struct Carried {
    const Edit* edit;
    int64_t batch_row;
    int64_t row;
    int64_t entry;
    int64_t start;  // first token in the chunk
  };

  // Tokens that an edit changes.
  struct Span {
    int64_t first;
    int64_t count;
  };

  // Rows are independent; all edits of a row are taken by one thread, in their order.
  template <typename F>
  void each(const F& f) {
    run_ranges(static_cast<int64_t>(lengths_.size()), 1, [&](int64_t begin, int64_t end) {
      auto at_row = [](const Carried& one, int64_t row) { return one.row < row; };
      auto place = std::lower_bound(carried_.begin(), carried_.end(), begin, at_row);
      for (; place != carried_.end() && place->row < end; ++place) {
        f(*place, gates_[place - carried_.begin()]);
      }
      release(kInterleave<T> == 2);
    });
  }

  float read_gate(const Carried& one, int64_t layer, const T* x, int64_t stride, int64_t width) {
    const float* weight = one.edit->template at<float>(4, one.entry, layer);
    if (weight == nullptr) return 1.0f;
    const float bias = *one.edit->template at<float>(5, one.entry, layer);
    float total = 0.0f;
    for (int64_t token = 0; token < lengths_[one.row]; ++token) {
      const T* from = x + token * stride;
      Floats sum(0.0f);
      for (int64_t h = 0; h < width; h += kLanes) {
        const int64_t count = std::min(kLanes, width - h);
        sum = at::vec::fmadd(load(from + h, count), Floats::loadu(weight + h, count), sum);
      }
      total += 1.0f / (1.0f + std::exp(-(sum_of(sum) + bias)));
    }
    return total / lengths_[one.row];
  }

  void shift_special(const Carried& one, int64_t layer, float gate, const Tokens<T>& tokens) {
    const float* vectors = one.edit->template at<float>(0, one.entry, layer);
    const int64_t first = edits_.special_starts[one.batch_row];
    const int64_t specials = edits_.special_starts[one.batch_row + 1] - first;
    const int64_t slots = std::min(specials, one.edit->tensors[0].size(2));
    for (int64_t slot = 0; slot < slots; ++slot) {
      add(vectors + slot * tokens.width, gate,
          tokens.at(one.start + edits_.special[first + slot]), tokens.width);
    }
  }

  static void change(const Carried& one, int64_t layer, float gate, const Span& span,
                     const Tokens<const T>& source, const Tokens<T>& found) {
    if (one.edit->kind == Kind::kLowRank) {
      add_low_rank(one, layer, gate, span, source, found);
    } else if (one.edit->kind == Kind::kShift) {
      shift(one, layer, gate, span, found);
    } else {
      scale(one, layer, gate, span, found);
    }
  }

  static void shift(const Carried& one, int64_t layer, float gate, const Span& span,
                    const Tokens<T>& found) {
    const float* vector = one.edit->template at<float>(0, one.entry, layer);
    for (int64_t token = 0; token < span.count; ++token) {
      add(vector, gate, found.at(span.first + token), found.width);
    }
  }

  static void scale(const Carried& one, int64_t layer, float gate, const Span& span,
                    const Tokens<T>& found) {
    const float* factors = one.edit->template at<float>(0, one.entry, layer);
    for (int64_t token = 0; token < span.count; ++token) {
      T* x = found.at(span.first + token);
      for (int64_t h = 0; h < found.width; h += kLanes) {
        const int64_t count = std::min(kLanes, found.width - h);
        const Floats value = load(x + h, count);
        const Floats less = (Floats::loadu(factors + h, count) - Floats(1.0f)) * Floats(gate);
        store(at::vec::fmadd(value, less, value), x + h, count);
      }
    }
  }

  // `rows` tokens from `first` on, a multiple of kTile; those that there is no room for are zeros.
  static const T* tile(const Tokens<const T>& source, int64_t first, int64_t rows, Room& room) {
    if (first + rows <= source.count) return source.at(first);
    T* copy = Room::of(room.tokens, rows * source.stride);
    std::fill(copy, copy + rows * source.stride, T(0));
    for (int64_t token = 0; first + token < source.count; ++token) {
      std::memcpy(copy + token * source.stride, source.at(first + token),
                  source.width * sizeof(T));
    }
    return copy;
  }

  static void add_low_rank(const Carried& one, int64_t layer, float gate, const Span& span,
                           const Tokens<const T>& source, const Tokens<T>& found) {
    const int64_t rank = one.edit->tensors[0].size(3);
    const T* down = one.edit->template at<T>(0, one.entry, layer);
    const T* up = one.edit->template at<T>(1, one.entry, layer);
    Room& room = room_of_this_thread();
    float* low = Room::of(room.low, kBlock * rank);
    float* added = Room::of(room.added, kBlock * found.width);
    T* narrow = Room::of(room.narrow, kBlock * rank);
    for (int64_t first = 0; first < span.count; first += kBlock) {
      const int64_t real = std::min(kBlock, span.count - first);
      const int64_t rows = round_up(real, kTile);
      const T* x = tile(source, span.first + first, rows, room);
      multiply<T>(rows, rank, source.width, x, source.stride, down, rank, low, rank);
      convert(low, gate, rows * rank, narrow);
      multiply<T>(rows, found.width, rank, narrow, rank, up, found.width, added, found.width);
      for (int64_t token = 0; token < real; ++token) {
        add(added + token * found.width, 1.0f, found.at(span.first + first + token), found.width);
      }
    }
  }

  void add_bottleneck(const Carried& one, int64_t layer, float& gate, const T* attended,
                      const Norm& norm, const Tokens<T>& outer) {
    const int64_t width = outer.width, length = lengths_[one.row];
    const int64_t inner = one.edit->tensors[0].size(3), padded = round_up(length, kTile);
    Room& room = room_of_this_thread();
    T* read = Room::of(room.tokens, padded * width);
    T* narrow = Room::of(room.narrow, kBlock * inner);
    float* low = Room::of(room.low, kBlock * inner);
    float* added = Room::of(room.added, kBlock * width);
    for (int64_t token = 0; token < length; ++token) {
      add_norm_row<T>(outer.at(one.start + token), attended + (one.start + token) * width, norm,
                      width, added, read + token * width);
    }
    std::fill(read + length * width, read + padded * width, T(0));
    gate = read_gate(one, layer, read, width, width);
    const T* down = one.edit->template at<T>(0, one.entry, layer);
    const float* down_bias = one.edit->template at<float>(1, one.entry, layer);
    const T* up = one.edit->template at<T>(2, one.entry, layer);
    const float* up_bias = one.edit->template at<float>(3, one.entry, layer);
    for (int64_t first = 0; first < length; first += kBlock) {
      const int64_t real = std::min(kBlock, length - first), rows = round_up(real, kTile);
      multiply<T>(rows, inner, width, read + first * width, width, down, inner, low, inner);
      for (int64_t token = 0; token < rows; ++token) {
        relu(low + token * inner, down_bias, inner, narrow + token * inner);
      }
      multiply<T>(rows, width, inner, narrow, inner, up, width, added, width);
      for (int64_t token = 0; token < real; ++token) {
        T* to = outer.at(one.start + first + token);
        add_biased(added + token * width, up_bias, gate, to, width);
      }
    }
  }

  static void convert(const float* from, float scale, int64_t count, T* to) {
    for (int64_t at = 0; at < count; at += kLanes) {
      const int64_t some = std::min(kLanes, count - at);
      store(Floats::loadu(from + at, some) * Floats(scale), to + at, some);
    }
  }

  static void relu(const float* x, const float* bias, int64_t width, T* out) {
    for (int64_t h = 0; h < width; h += kLanes) {
      const int64_t count = std::min(kLanes, width - h);
      const Floats value = Floats::loadu(x + h, count) + Floats::loadu(bias + h, count);
      store(higher(value, Floats(0.0f)), out + h, count);
    }
  }

  static void add(const float* values, float gate, T* x, int64_t width) {
    for (int64_t h = 0; h < width; h += kLanes) {
      const int64_t count = std::min(kLanes, width - h);
      store(at::vec::fmadd(Floats::loadu(values + h, count), Floats(gate), load(x + h, count)),
            x + h, count);
    }
  }

  static void add_biased(const float* values, const float* bias, float gate, T* x, int64_t width) {
    for (int64_t h = 0; h < width; h += kLanes) {
      const int64_t count = std::min(kLanes, width - h);
      const Floats value = Floats::loadu(values + h, count) + Floats::loadu(bias + h, count);
      store(at::vec::fmadd(value, Floats(gate), load(x + h, count)), x + h, count);
    }
  }

  const Edits& edits_;
  const c10::ArrayRef<int64_t> lengths_;
  std::vector<Carried> carried_;  // by row, then in the order of the edits
  std::vector<float> gates_;      // of each carried edit, at the layer that runs
};

}  // namespace labelmux
