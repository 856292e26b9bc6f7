// The frozen pass on a CPU, as one torch operator over packed rows: a thread of Python lets go of
// the interpreter's lock once a pass, and may have to wait for it each time that it does.
//
// Attention has no padding, both position terms inside, and keeps nothing of size [T, T]. All read
// float or bfloat16, compute sums and softmax in float, and have no gradient.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/InferenceMode.h>
#include <omp.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

#include "edits.h"
#include "lanes.h"
#include "linear.h"
#include "norm.h"
#include "parallel.h"
#include "products.h"

namespace {

using at::BFloat16;
using labelmux::Floats;
using labelmux::kInterleave;
using labelmux::kLanes;
using labelmux::linear;
using labelmux::multiply;
using labelmux::Norm;
using labelmux::release;
using labelmux::round_up;
using labelmux::RowPrefix;
using labelmux::Site;
using labelmux::Tokens;
constexpr int64_t kStep = 16;    // block sizes are multiples: the tile of a matrix product
constexpr int64_t kBlock = 128;  // most queries, and keys, of one block
constexpr int64_t kGroupTokens = 256;
constexpr int64_t kAlignment = 64;
constexpr int64_t kCopied = 65'536;  // values, for fewer of which no other thread is asked

// Queries, and keys, of one row that are scored together: few large products, results in cache.
int64_t block_for(int64_t length) { return std::min(round_up(length, kStep), kBlock); }

// Rows of one block size, which a head takes together: the products with its position tables are
// then one, and the products of a kind follow each other. A row longer than a block is alone.
// So is one whose position tables are its own.
struct Group {
  int64_t rows() const { return static_cast<int64_t>(starts.size()); }
  int64_t columns() const { return keys + round_up(prefix, kStep); }

  int64_t block;
  int64_t keys;    // of one row, rounded up
  int64_t prefix;  // keys before each row's own
  std::vector<int64_t> members;
  std::vector<int64_t> starts;
  std::vector<int64_t> lengths;
};

// Group sizes are powers of two, so that few sizes of products are ever compiled. `prefixes` holds
// how many keys come before each row's own; empty: none. `apart` are rows in groups of their own.
std::vector<Group> group_rows(c10::ArrayRef<int64_t> lengths, c10::ArrayRef<int64_t> prefixes,
                              const std::vector<int64_t>& apart) {
  struct Row {
    int64_t prefix, length, start, index;
    bool alone;
    bool operator<(const Row& other) const {
      return std::tie(alone, prefix, length, start) <
             std::tie(other.alone, other.prefix, other.length, other.start);
    }
  };
  std::vector<Row> rows;
  int64_t start = 0;
  for (size_t index = 0; index < lengths.size(); ++index) {
    const int64_t prefix = prefixes.empty() ? 0 : prefixes[index];
    rows.push_back({prefix, lengths[index], start, static_cast<int64_t>(index), false});
    start += lengths[index];
  }
  for (const int64_t row : apart) rows[row].alone = true;
  std::sort(rows.begin(), rows.end());
  std::vector<Group> groups;
  for (size_t first = 0; first < rows.size();) {
    const int64_t block = block_for(rows[first].length), prefix = rows[first].prefix;
    size_t end = first;
    while (end < rows.size() && !rows[end].alone && rows[end].length <= kBlock &&
           block_for(rows[end].length) == block && rows[end].prefix == prefix) {
      ++end;
    }
    int64_t size = 1;
    while (2 * size * block <= kGroupTokens && first + 2 * size <= end) size *= 2;
    Group group{block, round_up(rows[first].length, block), prefix, {}, {}, {}};
    for (int64_t row = 0; row < size; ++row) {
      group.members.push_back(rows[first + row].index);
      group.starts.push_back(rows[first + row].start);
      group.lengths.push_back(rows[first + row].length);
    }
    first += size;
    groups.push_back(std::move(group));
  }
  return groups;
}

// The scratch memory of one thread, enough for each of the call's groups.
template <typename T>
struct Scratch {
  Scratch(const std::vector<Group>& groups, int64_t head_size) {
    int64_t counts[8] = {};
    for (const Group& group : groups) {
      const int64_t queries = group.rows() * group.block, keys = group.rows() * group.keys;
      const int64_t wanted[] = {keys * head_size,
                                keys * head_size,
                                queries * head_size,
                                queries * group.columns(),
                                queries * group.columns(),
                                queries * (group.keys + group.block),
                                2 * group.block * keys,
                                queries * head_size};
      for (int place = 0; place < 8; ++place) {
        counts[place] = std::max(counts[place], wanted[place]);
      }
    }
    int64_t offsets[9] = {0};
    for (int place = 0; place < 8; ++place) {
      const int64_t size = place < 4 ? sizeof(T) : sizeof(float);
      offsets[place + 1] = offsets[place] + round_up(counts[place] * size, kAlignment);
    }
    memory_.reset(new unsigned char[offsets[8] + kAlignment]);
    auto* at = memory_.get();
    at += kAlignment - reinterpret_cast<uintptr_t>(at) % kAlignment;
    keys_ = reinterpret_cast<T*>(at + offsets[0]);
    values_ = reinterpret_cast<T*>(at + offsets[1]);
    query_ = reinterpret_cast<T*>(at + offsets[2]);
    weights_ = reinterpret_cast<T*>(at + offsets[3]);
    content_ = reinterpret_cast<float*>(at + offsets[4]);
    c2p_ = reinterpret_cast<float*>(at + offsets[5]);
    p2c_ = reinterpret_cast<float*>(at + offsets[6]);
    context_ = reinterpret_cast<float*>(at + offsets[7]);
  }

  T* keys_;         // [D, rows * keys], interleaved
  T* values_;       // [rows, keys, D], interleaved
  T* query_;        // [rows, block, D]
  T* weights_;      // [rows, block, columns], exp(logit - max)
  float* content_;  // [rows, block, columns]
  float* c2p_;      // [rows, block, keys + block]
  float* p2c_;      // per block of keys: [2 * block, rows * block]
  float* context_;  // [rows, block, D]

 private:
  std::unique_ptr<unsigned char[]> memory_;
};

// Tables of one layer; either may be absent. Distance 0 lies at `centre` in both.
template <typename T>
struct Tables {
  const T* key;    // [heads, D, width] interleaved, distance falling
  const T* query;  // [heads, width, D], distance rising
  int64_t width;
  int64_t centre;
};

// Position tables of the rows that carry edits of them, each for the distances that the row sees.
template <typename T>
class OwnTables {
 public:
  // `relative` is what the tables are projections of, distance rising, 0 at their centre.
  OwnTables(const labelmux::ChunkEdits<T>& edits, int64_t layer, c10::ArrayRef<int64_t> lengths,
            const Tables<T>& frozen, const Tokens<const T>& relative, int64_t heads)
      : edits_(edits), layer_(layer), frozen_(frozen), relative_(relative), heads_(heads) {
    if (relative.count == 0) return;
    rows_ = edits.rows_with_tables();
    built_.resize(rows_.size());
    labelmux::run_ranges(static_cast<int64_t>(rows_.size()), 1, [&](int64_t begin, int64_t end) {
      for (int64_t place = begin; place < end; ++place) {
        const int64_t length = lengths[rows_[place]];
        built_[place] = build(rows_[place], round_up(length, block_for(length)));
      }
      release(kInterleave<T> == 2);
    });
  }

  const std::vector<int64_t>& rows() const { return rows_; }

  Tables<T> of(int64_t row) const {
    const auto place = std::lower_bound(rows_.begin(), rows_.end(), row);
    if (place == rows_.end() || *place != row) return frozen_;
    const Built& own = built_[place - rows_.begin()];
    return {own.key.get(), own.query.get(), 2 * own.keys, own.keys - 1};
  }

 private:
  using Memory = std::unique_ptr<T[]>;

  struct Built {
    int64_t keys;  // of the row, rounded up: it sees twice as many distances
    Memory key, query;
  };

  Memory lines(int64_t keys) const { return Memory(new T[2 * keys * relative_.width]); }

  Tokens<T> tokens(const Memory& memory, int64_t keys) const {
    return {memory.get(), relative_.width, relative_.width, 2 * keys};
  }

  Built build(int64_t row, int64_t keys) const {
    Built own{keys, nullptr, nullptr};
    const Memory work = lines(keys);
    if (frozen_.key != nullptr) own.key = build_key(row, keys, tokens(work, keys));
    if (frozen_.query != nullptr) own.query = build_query(row, keys, tokens(work, keys));
    return own;
  }

  // Distances from keys - 1 down to -keys. A bfloat16 pair moves as one 32-bit value.
  Memory build_key(int64_t row, int64_t keys, const Tokens<T>& work) const {
    const int64_t units = work.width / kInterleave<T>, own = units / heads_;
    const int64_t column = frozen_.centre - keys + 1;
    auto* lines_of = reinterpret_cast<float*>(work.data);
    for (int64_t head = 0; head < heads_; ++head) {
      const auto* from = reinterpret_cast<const float*>(frozen_.key) + head * own * frozen_.width;
      labelmux::transpose(from + column, frozen_.width, own, work.count, lines_of + head * own,
                          units);
    }
    const Memory source = lines(keys);
    for (int64_t line = 0; line < work.count; ++line) {
      std::memcpy(source.get() + line * work.width,
                  relative_.at(frozen_.centre + keys - 1 - line), work.width * sizeof(T));
    }
    const Tokens<T> read = tokens(source, keys);
    edits_.at_table(Site::kPositionKey, layer_, row,
                    {read.data, read.stride, read.width, read.count}, work);
    Memory found = lines(keys);
    for (int64_t head = 0; head < heads_; ++head) {
      labelmux::transpose(lines_of + head * own, units, work.count, own,
                          reinterpret_cast<float*>(found.get()) + head * own * work.count,
                          work.count);
    }
    return found;
  }

  // Distances from 1 - keys up to keys.
  Memory build_query(int64_t row, int64_t keys, const Tokens<T>& work) const {
    const int64_t size = work.width / heads_, first = frozen_.centre - keys + 1;
    for (int64_t line = 0; line < work.count; ++line) {
      for (int64_t head = 0; head < heads_; ++head) {
        std::memcpy(work.at(line) + head * size,
                    frozen_.query + (head * frozen_.width + first + line) * size,
                    size * sizeof(T));
      }
    }
    edits_.at_table(Site::kPositionQuery, layer_, row,
                    {relative_.at(first), relative_.stride, relative_.width, work.count}, work);
    Memory found = lines(keys);
    for (int64_t head = 0; head < heads_; ++head) {
      for (int64_t line = 0; line < work.count; ++line) {
        std::memcpy(found.get() + (head * work.count + line) * size,
                    work.at(line) + head * size, size * sizeof(T));
      }
    }
    return found;
  }

  const labelmux::ChunkEdits<T>& edits_;
  const int64_t layer_;
  const Tables<T> frozen_;
  const Tokens<const T> relative_;
  const int64_t heads_;
  std::vector<int64_t> rows_;  // of the chunk, rising
  std::vector<Built> built_;
};

// One head of one group.
template <typename T>
class Head {
 public:
  // `qkv` and `out` point at this head's part of the batch's first token.
  // `prefixes` holds those of all rows of the batch, if any has one.
  Head(const T* qkv, T* out, int64_t hidden, int64_t head_size, const Group& group,
       const std::vector<RowPrefix<T>>& prefixes, Scratch<T>& scratch)
      : qkv_(qkv), out_(out), hidden_(hidden), stride_(3 * hidden), size_(head_size),
        group_(group), prefixes_(prefixes), rows_(group.rows()), block_(group.block),
        keys_(group.keys), columns_(group.columns()), scratch_(scratch), sums_(rows_ * block_) {}

  void run(const Tables<T>& tables, int64_t head) {
    for (int64_t row = 0; row < rows_; ++row) {
      pack_keys(row);
      pack_values(row);
    }
    for (int64_t first = 0; first < keys_; first += block_) {
      for (int64_t row = 0; row < rows_; ++row) take_queries(row, first);
      score(tables, head, first);
      for (int64_t row = 0; row < rows_; ++row) weigh(tables, row, first);
      sum_values(head);
      for (int64_t row = 0; row < rows_; ++row) write(row, first);
    }
  }

 private:
  const RowPrefix<T>& prefix_of(int64_t row) const { return prefixes_[group_.members[row]]; }

  int64_t real_queries(int64_t row, int64_t first) const {
    return std::min(block_, group_.lengths[row] - first);
  }

  const T* token(int64_t row, int64_t index) const {
    return qkv_ + (group_.starts[row] + index) * stride_;
  }

  // Keys as columns; a bfloat16 pair moves as one 32-bit value.
  void pack_keys(int64_t row) {
    constexpr int64_t interleaved = kInterleave<T>;
    const int64_t pairs = size_ / interleaved, length = group_.lengths[row];
    auto* to = reinterpret_cast<float*>(scratch_.keys_) + row * keys_;
    labelmux::transpose(reinterpret_cast<const float*>(token(row, 0) + hidden_),
                        stride_ / interleaved, length, pairs, to, rows_ * keys_);
    if (length == keys_) return;
    for (int64_t pair = 0; pair < pairs; ++pair) {
      float* line = to + pair * rows_ * keys_;
      std::fill(line + length, line + keys_, 0.0f);
    }
  }

  void pack_values(int64_t row) {
    const T* values = token(row, 0) + 2 * hidden_;
    const int64_t length = group_.lengths[row];
    T* to = scratch_.values_ + row * keys_ * size_;
    if constexpr (kInterleave<T> == 2) {
      for (int64_t key = 0; key < keys_; key += 2) {
        labelmux::interleave(values + key * stride_, stride_, length - key, size_, to + key * size_);
      }
    } else {
      for (int64_t key = 0; key < length; ++key) {
        std::memcpy(to + key * size_, values + key * stride_, size_ * sizeof(T));
      }
      std::fill(to + length * size_, to + keys_ * size_, T(0));
    }
  }

  void take_queries(int64_t row, int64_t first) {
    T* to = scratch_.query_ + row * block_ * size_;
    const int64_t real = std::max<int64_t>(0, real_queries(row, first));
    for (int64_t query = 0; query < real; ++query) {
      std::memcpy(to + query * size_, token(row, first + query), size_ * sizeof(T));
    }
    std::fill(to + real * size_, to + block_ * size_, T(0));
  }

  // Content scores, and both position terms for every distance that the block can see.
  void score(const Tables<T>& tables, int64_t head, int64_t first) {
    for (int64_t row = 0; row < rows_; ++row) {
      multiply<T>(block_, keys_, size_, scratch_.query_ + row * block_ * size_, size_,
                  scratch_.keys_ + row * keys_ * kInterleave<T>, rows_ * keys_,
                  scratch_.content_ + row * block_ * columns_, columns_);
    }
    // Loops of their own: a change of sizes sets a thread's tile registers up anew.
    const int64_t count = columns_ - keys_;
    for (int64_t row = 0; count && row < rows_; ++row) {
      multiply<T>(block_, count, size_, scratch_.query_ + row * block_ * size_, size_,
                  prefix_of(row).keys + head * size_ * count, count,
                  scratch_.content_ + row * block_ * columns_ + keys_, columns_);
    }
    if (tables.key != nullptr) {
      const int64_t column = tables.centre - first - (block_ - 1);
      multiply<T>(rows_ * block_, keys_ + block_, size_, scratch_.query_, size_,
                  tables.key + (head * size_ * tables.width + column * kInterleave<T>),
                  tables.width, scratch_.c2p_, keys_ + block_);
    }
    if (tables.query != nullptr) {
      for (int64_t key = 0; key < keys_; key += block_) {
        const int64_t line = tables.centre + first - key - (block_ - 1);
        multiply<T>(2 * block_, rows_ * block_, size_,
                    tables.query + (head * tables.width + line) * size_, size_,
                    scratch_.keys_ + key * kInterleave<T>, rows_ * keys_,
                    scratch_.p2c_ + key * 2 * block_, rows_ * block_);
      }
    }
  }

  // Softmax weights, not yet divided by their sum.
  void weigh(const Tables<T>& tables, int64_t row, int64_t first) {
    const int64_t real = real_queries(row, first), length = group_.lengths[row];
    const auto lanes =
        at::vec::Vectorized<int32_t>::arange(0, 1 - static_cast<int32_t>(rows_ * block_));
    T* weights = scratch_.weights_ + row * block_ * columns_;
    for (int64_t query = 0; query < real; ++query) {
      float* logits = scratch_.content_ + (row * block_ + query) * columns_;
      const float* c2p = scratch_.c2p_ + (row * block_ + query) * (keys_ + block_) +
                         (block_ - 1 - query);
      Floats highest(-std::numeric_limits<float>::infinity());
      for (int64_t key = 0; key < keys_; key += kLanes) {
        Floats value = Floats::loadu(logits + key);
        if (tables.key != nullptr) value = value + Floats::loadu(c2p + key);
        if (tables.query != nullptr) value = value + gather_p2c(row, query, key, lanes);
        if (key + kLanes > length) value = mask_from(value, length - key);
        value.store(logits + key);
        highest = labelmux::higher(highest, value);
      }
      const float gate = group_.prefix ? prefix_of(row).gate : 1.0f;
      if (group_.prefix) highest = weigh_prefix(gate, logits + keys_, highest);
      sums_[row * block_ + query] =
          exponentiate(logits, labelmux::highest_of(highest), gate, weights + query * columns_);
    }
    std::fill(weights + std::max<int64_t>(0, real) * columns_, weights + block_ * columns_, T(0));
  }

  // A prefix has content alone; its gate scales its keys.
  Floats weigh_prefix(float gate, float* logits, Floats highest) const {
    for (int64_t key = 0; key < columns_ - keys_; key += kLanes) {
      const Floats value = Floats::loadu(logits + key) * Floats(gate);
      const Floats masked = key + kLanes > group_.prefix ? mask_from(value, group_.prefix - key) : value;
      masked.store(logits + key);
      highest = labelmux::higher(highest, masked);
    }
    return highest;
  }

  void sum_values(int64_t head) {
    for (int64_t row = 0; row < rows_; ++row) {
      multiply<T>(block_, size_, keys_, scratch_.weights_ + row * block_ * columns_, columns_,
                  scratch_.values_ + row * keys_ * size_, size_,
                  scratch_.context_ + row * block_ * size_, size_);
    }
    const int64_t count = columns_ - keys_;
    for (int64_t row = 0; count && row < rows_; ++row) {
      multiply<T>(block_, size_, count, scratch_.weights_ + row * block_ * columns_ + keys_,
                  columns_, prefix_of(row).values + head * count * size_, size_,
                  scratch_.context_ + row * block_ * size_, size_, /*add=*/true);
    }
  }

  Floats gather_p2c(int64_t row, int64_t query, int64_t key,
                    const at::vec::Vectorized<int32_t>& lanes) {
    const int64_t within = key % block_;
    const float* from = scratch_.p2c_ + (key - within) * 2 * block_ +
                        (query - within + block_ - 1) * rows_ * block_ + row * block_ + within;
    return at::vec::gather<4>(from, lanes);
  }

  static Floats mask_from(const Floats& value, int64_t count) {
    return labelmux::first_lanes(value, count, Floats(-std::numeric_limits<float>::infinity()));
  }

  // `gate` scales what the prefix adds, not its share of the softmax.
  float exponentiate(const float* logits, float top, float gate, T* weights) {
    constexpr float kLog2E = 1.4426950408889634f;
    const Floats shift(-top * kLog2E);
    Floats sum(0.0f);
    for (int64_t key = 0; key < columns_; key += kLanes) {
      const Floats power = at::vec::fmadd(Floats::loadu(logits + key), Floats(kLog2E), shift);
      const Floats weight = labelmux::exp2<T>(power);
      sum = sum + weight;
      labelmux::store(key < keys_ ? weight : weight * Floats(gate), weights + key);
    }
    return labelmux::sum_of(sum);
  }

  void write(int64_t row, int64_t first) {
    const int64_t real = real_queries(row, first);
    for (int64_t query = 0; query < real; ++query) {
      const int64_t place = row * block_ + query;
      const float* from = scratch_.context_ + place * size_;
      const Floats scale(1.0f / sums_[place]);
      T* to = out_ + (group_.starts[row] + first + query) * hidden_;
      for (int64_t d = 0; d < size_; d += kLanes) {
        const int64_t count = std::min(kLanes, size_ - d);
        labelmux::store(Floats::loadu(from + d, count) * scale, to + d, count);
      }
    }
  }

  const T* qkv_;
  T* out_;
  const int64_t hidden_;
  const int64_t stride_;
  const int64_t size_;
  const Group& group_;
  const std::vector<RowPrefix<T>>& prefixes_;
  const int64_t rows_;
  const int64_t block_;
  const int64_t keys_;
  const int64_t columns_;
  Scratch<T>& scratch_;
  std::vector<float> sums_;
};

// First (group, head) of each of `parts` parts of about equal work. parts + 1 entries
std::vector<int64_t> share(const std::vector<Group>& groups, int64_t heads, int64_t parts) {
  auto work = [](const Group& group) { return group.rows() * group.keys * (group.keys + 64); };
  int64_t total = 0;
  for (const Group& group : groups) total += work(group) * heads;
  std::vector<int64_t> bounds(parts + 1, static_cast<int64_t>(groups.size()) * heads);
  bounds[0] = 0;
  int64_t done = 0, part = 1, index = 0;
  for (const Group& group : groups) {
    for (int64_t head = 0; head < heads; ++head, ++index) {
      while (part < parts && done * parts >= total * part) bounds[part++] = index;
      done += work(group);
    }
  }
  return bounds;
}

template <typename T>
void attend(const at::Tensor& qkv, c10::ArrayRef<int64_t> lengths,
            const std::vector<RowPrefix<T>>& prefixes, const OwnTables<T>& tables, int64_t heads,
            at::Tensor& out) {
  const int64_t hidden = out.size(1), head_size = hidden / heads;
  std::vector<int64_t> counts;
  for (const RowPrefix<T>& prefix : prefixes) counts.push_back(prefix.count);
  const auto groups = group_rows(lengths, counts, tables.rows());
  const T* from = qkv.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  const int64_t parts = std::min<int64_t>(labelmux::thread_count(), groups.size() * heads);
  const auto bounds = share(groups, heads, parts);
  labelmux::run_ranges(parts, 1, [&](int64_t begin, int64_t end) {
    Scratch<T> scratch(groups, head_size);
    for (int64_t index = bounds[begin]; index < bounds[end]; ++index) {
      const int64_t head = index % heads;
      const Group& group = groups[index / heads];
      Head<T>(from + head * head_size, to + head * head_size, hidden, head_size, group, prefixes,
              scratch)
          .run(tables.of(group.members[0]), head);
    }
    release(kInterleave<T> == 2);
  });
}

template <typename T>
void add_norm(const at::Tensor& x, const at::Tensor& residual, const Norm& norm, at::Tensor& out) {
  const int64_t hidden = x.size(1);
  const T* x_ = x.const_data_ptr<T>();
  const T* residual_ = residual.const_data_ptr<T>();
  T* out_ = out.mutable_data_ptr<T>();
  const int64_t grain = std::max<int64_t>(1, 8192 / hidden);
  labelmux::run_ranges(x.size(0), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(hidden);
    for (int64_t row = begin; row < end; ++row) {
      labelmux::add_norm_row<T>(x_ + row * hidden, residual_ + row * hidden, norm, hidden,
                                buffer.data(), out_ + row * hidden);
    }
  });
}

// Where the first states come from; tables [.., H] in float.
struct Embedding {
  // In the order of CpuPass._embedding_constants; tables that an encoder lacks are empty.
  Embedding(at::TensorList constants, const at::Tensor& tokens, const at::Tensor& types,
            double epsilon)
      : words(rows_of(constants[0])), positions(rows_of(constants[1])), kinds(rows_of(constants[2])),
        norm{constants[3].const_data_ptr<float>(), constants[4].const_data_ptr<float>(),
             static_cast<float>(epsilon)},
        hidden(constants[3].size(0)), token_ids(checked(tokens, constants[0])),
        type_ids(kinds ? checked(types, constants[2]) : nullptr) {}

  const float* words;
  const float* positions;
  const float* kinds;
  Norm norm;
  int64_t hidden;
  const int64_t* token_ids;
  const int64_t* type_ids;

  // One token's, which lies at this place of its row.
  template <typename T>
  void row(int64_t token, int64_t place, float* buffer, T* out) const {
    const float* of[3] = {words + token_ids[token] * hidden};
    int64_t count = 1;
    if (positions) of[count++] = positions + place * hidden;
    if (kinds) of[count++] = kinds + type_ids[token] * hidden;
    labelmux::sum_norm_row<T>(of, count, norm, hidden, buffer, out);
  }

 private:
  static const float* rows_of(const at::Tensor& table) {
    return table.numel() ? table.const_data_ptr<float>() : nullptr;
  }

  static const int64_t* checked(const at::Tensor& ids, const at::Tensor& table) {
    TORCH_CHECK(ids.is_contiguous(), "encode: ids must be contiguous");
    const int64_t* found = ids.const_data_ptr<int64_t>();
    for (int64_t index = 0; index < ids.numel(); ++index) {
      TORCH_CHECK_INDEX(found[index] >= 0 && found[index] < table.size(0), "encode: id ",
                        found[index], " is not one of ", table.size(0));
    }
    return found;
  }
};

// What a pass over some rows needs besides the rows.
struct Pass {
  static constexpr int64_t kTensors = 14;  // of one layer, in the order of CpuPass._layer_constants

  int64_t layers() const { return static_cast<int64_t>(constants.size()) / kTensors; }

  Embedding embedding;
  at::TensorList constants;
  const at::Tensor& relative;
  int64_t heads;
  int64_t centre;
  double epsilon;
  labelmux::Activation activation;
  labelmux::Edits edits;
};

// Whole rows that pass through the layers together.
struct Chunk {
  int64_t first_row;
  int64_t first;  // token
  int64_t tokens;
  int64_t size;  // of the products, at least the tokens
  c10::ArrayRef<int64_t> lengths;
};

// A chunk on its way through the layers.
template <typename T>
class Run {
 public:
  Run(const Pass& pass, const Chunk& chunk, at::Tensor& states)
      : pass_(pass), chunk_(chunk), states_(states),
        edits_(pass.edits, chunk.first_row, chunk.lengths) {}

  // Products read rows beyond the last token; they are zeros at first, and whatever became of them
  // later.
  void run() {
    at::Tensor hidden = at::zeros({chunk_.size, states_.size(2)}, states_.options());
    at::Tensor context = at::zeros_like(hidden);
    at::Tensor attended = at::empty_like(hidden), next = at::empty_like(hidden);
    embed(hidden);
    keep(0, hidden);
    for (int64_t index = 0; index < pass_.layers(); ++index) {
      layer(index, hidden, context, attended, next);
      keep(index + 1, next);
      std::swap(hidden, next);
    }
  }

 private:
  void embed(at::Tensor& hidden) const {
    const int64_t width = hidden.size(1);
    std::vector<float> buffer(width);
    T* out = hidden.mutable_data_ptr<T>();
    int64_t token = chunk_.first;
    for (const int64_t length : chunk_.lengths) {
      for (int64_t place = 0; place < length; ++place, ++token, out += width) {
        pass_.embedding.row<T>(token, place, buffer.data(), out);
      }
    }
  }

  void keep(int64_t layer, const at::Tensor& found) {
    const int64_t width = found.size(1);
    const T* from = found.const_data_ptr<T>();
    T* to = states_.mutable_data_ptr<T>() + (layer * states_.size(1) + chunk_.first) * width;
    labelmux::run_ranges(chunk_.tokens, kCopied / width, [=](int64_t begin, int64_t end) {
      std::memcpy(to + begin * width, from + begin * width, (end - begin) * width * sizeof(T));
    });
  }

  // hidden, context, attended, out [M, H]; M is at least the tokens.
  void layer(int64_t index, at::Tensor& hidden, at::Tensor& context, at::Tensor& attended,
             at::Tensor& out) {
    const at::Tensor* of = pass_.constants.data() + index * Pass::kTensors;
    if (!edits_.empty()) edits_.enter(index, hidden);
    at::Tensor qkv = linear<T>(hidden, of[0], of[1]);
    edit_qkv(index, hidden, qkv);
    const OwnTables<T> own(edits_, index, chunk_.lengths, tables(of),
                           labelmux::source_of<T>(pass_.relative), pass_.heads);
    attend<T>(qkv, chunk_.lengths, edits_.prefixes(index), own, pass_.heads, context);
    edit(Site::kContext, index, context);
    at::Tensor projected = linear<T>(context, of[4], of[5]);
    edit(Site::kAttentionOut, index, projected, &context);
    add_norm<T>(projected, hidden, norm(of + 6), attended);
    edit(Site::kAttentionNorm, index, attended);
    at::Tensor inner = ffn_in(index, attended);
    edit(Site::kInner, index, inner);
    at::Tensor outer = linear<T>(inner, of[10], of[11]);
    edit(Site::kFfnOut, index, outer, &inner);
    if (!edits_.empty()) edits_.bottleneck(index, attended, norm(of + 12), outer);
    add_norm<T>(outer, attended, norm(of + 12), out);
    edit(Site::kFfnNorm, index, out);
  }

  void edit(Site site, int64_t index, at::Tensor& found, const at::Tensor* source = nullptr) {
    if (edits_.any(site)) edits_.at(site, index, labelmux::tokens_of<T>(found), source);
  }

  void edit_qkv(int64_t index, const at::Tensor& hidden, at::Tensor& qkv) {
    const int64_t width = hidden.size(1);
    int64_t part = 0;
    for (const Site site : {Site::kQuery, Site::kKey, Site::kValue}) {
      if (edits_.any(site)) {
        T* data = qkv.mutable_data_ptr<T>() + part * width;
        edits_.at(site, index, {data, qkv.stride(0), width, qkv.size(0)}, &hidden);
      }
      ++part;
    }
  }

  // The product applies the activation itself, to sums that were never rounded. Rows with an edit
  // before it are taken apart; where all have one, they are all there is.
  at::Tensor ffn_in(int64_t index, const at::Tensor& attended) {
    const at::Tensor* of = pass_.constants.data() + index * Pass::kTensors;
    if (!edits_.any(Site::kFfnIn)) return linear<T>(attended, of[8], of[9], pass_.activation);
    at::Tensor before = linear<T>(attended, of[8], of[9]);
    edits_.at(Site::kFfnIn, index, labelmux::tokens_of<T>(before), &attended);
    int64_t edited = 0;
    edits_.each_row(Site::kFfnIn, [&](int64_t, int64_t length) { edited += length; });
    at::Tensor inner = before;
    if (edited < chunk_.tokens) inner = linear<T>(attended, of[8], of[9], pass_.activation);
    const int64_t width = inner.size(1);
    edits_.each_row(Site::kFfnIn, [&](int64_t start, int64_t length) {
      const T* from = before.const_data_ptr<T>();
      T* to = inner.mutable_data_ptr<T>();
      for (int64_t at = start * width; at < (start + length) * width; at += width) {
        const auto value = [&](int64_t column, int64_t lanes) {
          return labelmux::load(from + at + column, lanes);
        };
        labelmux::finish_row(value, width, pass_.activation, to + at);
      }
    });
    return inner;
  }

  Tables<T> tables(const at::Tensor* of) const {
    Tables<T> found{nullptr, nullptr, 0, pass_.centre};
    if (of[2].numel()) {
      found.key = of[2].const_data_ptr<T>();
      found.width = of[2].size(2);
    }
    if (of[3].numel()) {
      found.query = of[3].const_data_ptr<T>();
      found.width = of[3].size(1);
    }
    return found;
  }

  Norm norm(const at::Tensor* of) const {
    return {of[0].const_data_ptr<float>(), of[1].const_data_ptr<float>(),
            static_cast<float>(pass_.epsilon)};
  }

  const Pass& pass_;
  const Chunk& chunk_;
  at::Tensor& states_;
  labelmux::ChunkEdits<T> edits_;
};

void run_chunk(const Pass& pass, const Chunk& chunk, at::Tensor& states) {
  if (states.scalar_type() == at::kBFloat16) {
    Run<BFloat16>(pass, chunk, states).run();
  } else {
    Run<float>(pass, chunk, states).run();
  }
}

// A thread for each chunk: none waits for another between the first layer and the last.
void run_side_by_side(const Pass& pass, const std::vector<Chunk>& chunks, at::Tensor& states) {
  // Threads start out of inference mode; the guard is each one's own.
  labelmux::run_parts<c10::InferenceMode>(chunks.size(), [&](int64_t place, c10::InferenceMode&) {
    run_chunk(pass, chunks[place], states);
  });
}

labelmux::Edits edits_of(int64_t rows, c10::ArrayRef<int64_t> kinds, c10::ArrayRef<int64_t> sites,
                         c10::ArrayRef<int64_t> prefix_lengths, at::TensorList tensors,
                         c10::ArrayRef<int64_t> entries,
                         c10::ArrayRef<int64_t> special, c10::ArrayRef<int64_t> special_starts) {
  const int64_t count = static_cast<int64_t>(kinds.size());
  TORCH_CHECK(sites.size() == kinds.size() && prefix_lengths.size() == kinds.size() &&
                  static_cast<int64_t>(tensors.size()) == count * labelmux::Edit::kTensors &&
                  static_cast<int64_t>(entries.size()) == count * rows &&
                  static_cast<int64_t>(special_starts.size()) == rows + 1,
              "encode: wrong edits");
  labelmux::Edits edits{{}, special, special_starts};
  for (int64_t index = 0; index < count; ++index) {
    edits.all.push_back({static_cast<labelmux::Kind>(kinds[index]), static_cast<Site>(sites[index]),
                         prefix_lengths[index], tensors.data() + index * labelmux::Edit::kTensors,
                         entries.data() + index * rows});
  }
  return edits;
}

// States [L+1, N, H], the embedding output first, of tokens [N].
// Chunk i is the next chunk_rows[i] rows; its products have chunk_sizes[i] rows of tokens. Edits are
// described in kernel_edits.py. relative [distances, H], what position tables are projections of.
at::Tensor encode(at::TensorList embedding, const at::Tensor& token_ids, const at::Tensor& type_ids,
            at::TensorList constants, const at::Tensor& relative, c10::ArrayRef<int64_t> lengths,
            c10::ArrayRef<int64_t> chunk_rows, c10::ArrayRef<int64_t> chunk_sizes,
            bool side_by_side, int64_t heads, int64_t centre, double epsilon,
            c10::string_view activation,
            c10::ArrayRef<int64_t> edit_kinds, c10::ArrayRef<int64_t> edit_sites,
            c10::ArrayRef<int64_t> prefix_lengths, at::TensorList edit_tensors, c10::ArrayRef<int64_t> edit_entries,
            c10::ArrayRef<int64_t> special, c10::ArrayRef<int64_t> special_starts) {
  const labelmux::Threads own(labelmux::thread_count());
  const int64_t rows = static_cast<int64_t>(lengths.size());
  const Pass pass{Embedding(embedding, token_ids, type_ids, epsilon), constants, relative, heads, centre, epsilon, labelmux::activation_of(activation),
                  edits_of(rows, edit_kinds, edit_sites, prefix_lengths, edit_tensors,
                           edit_entries, special, special_starts)};
  TORCH_CHECK(chunk_rows.size() == chunk_sizes.size(), "encode: wrong shapes");
  at::Tensor states = at::empty({pass.layers() + 1, token_ids.size(0), pass.embedding.hidden},
                                relative.options());
  std::vector<Chunk> chunks;
  int64_t first_row = 0, first = 0;
  for (size_t index = 0; index < chunk_rows.size(); ++index) {
    const auto part = lengths.slice(first_row, chunk_rows[index]);
    int64_t tokens = 0;
    for (const int64_t length : part) tokens += length;
    chunks.push_back({first_row, first, tokens, chunk_sizes[index], part});
    first_row += chunk_rows[index];
    first += tokens;
  }
  if (side_by_side) {
    run_side_by_side(pass, chunks, states);
  } else {
    for (const Chunk& chunk : chunks) run_chunk(pass, chunk, states);
  }
  return states;
}

// OpenMP keeps this count for each thread, for torch's operators too; torch sets its own when a
// thread first asks it.
void use_threads(int64_t count) {
  at::get_num_threads();
  omp_set_num_threads(static_cast<int>(count));
}

// Of the calling thread: whether each thread of its work gets parts of its own.
void take_turns(bool whether) { labelmux::takes_turns = whether; }

void share_cores(bool whether, int64_t niceness) {
  labelmux::Team::of_process().share_cores(whether, static_cast<int>(niceness));
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(labelmux, library) {
  library.def("share_cores(bool whether, int niceness) -> ()", &share_cores);
  library.def("use_threads(int count) -> ()", &use_threads);
  library.def("take_turns(bool whether) -> ()", &take_turns);
  library.def(
      "encode(Tensor[] embedding, Tensor token_ids, Tensor type_ids, Tensor[] constants, "
      "Tensor relative, int[] lengths, int[] chunk_rows, int[] chunk_sizes, "
      "bool side_by_side, int heads, int centre, float epsilon, str activation, "
      "int[] edit_kinds, int[] edit_sites, int[] prefix_lengths, Tensor[] edit_tensors, "
      "int[] edit_entries, int[] special, int[] special_starts) -> Tensor");
}

TORCH_LIBRARY_IMPL(labelmux, CPU, library) {
  library.impl("encode", &encode);
}
