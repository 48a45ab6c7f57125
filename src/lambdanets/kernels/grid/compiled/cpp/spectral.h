// Plan and memory of the spectral kernel, and the transforms of the table, of V and of λ, which both directions need.
// spectral.cpp says what its words mean.
#pragma once

#include "copies.h"
#include "fft.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace spectral {

// Heads side by side in packed queries, a group of heads.
constexpr int kGroupHeads = 4;

struct Plan {
  Problem p;
  int64_t positions, heads, pairs;      // heads: padded; pairs of u and k
  int64_t height, width, points;        // lengths of the transforms along y and x, and their product
  int64_t pitch;                        // points from a row of λ to the next
  int64_t groups, parts, tasks, slots;  // groups of channels, parts of k
  // 1 / √points, in the spectra of V, of the table and of dλ: a product of two of them is divided by the number of
  // points before it is summed, and does not overflow for numbers whose result has room.
  float scale;

  Plan(const Problem& problem, int64_t slots_wanted) : p(problem) {
    positions = p.rows * p.columns;
    heads = round_up(p.heads, kGroupHeads);
    pairs = p.intra_depth * p.dim_key;
    height = length_for(p.rows, p.extent_rows, p.origin_row);
    width = length_for(p.columns, p.extent_columns, p.origin_column);
    points = height * width;
    scale = 1.0f / std::sqrt(static_cast<float>(points));
    // Odd: columns of λ are read and written too, and with a power of two they would share few places of the cache.
    pitch = width | 1;
    groups = ceil_div(p.dim_value, kPoint);
    parts = least(p.dim_key, ceil_div(slots_wanted, p.batch * groups));
    tasks = p.batch * groups * parts;
    slots = most(1, least(slots_wanted, tasks));
  }

  // No offset may wrap around into the grid.
  static int64_t length_for(int64_t size, int64_t extent, int64_t origin) {
    return good_length(size + most(origin, extent - 1 - origin));
  }

  int64_t first_task(int64_t slot) const { return slot * tasks / slots; }
  int64_t queries_size() const { return positions * heads * p.dim_key; }
  int64_t outputs_size() const { return positions * heads * kPoint; }
  int64_t values_size() const { return p.intra_depth * positions * kPoint; }
};

// Scratch memory of a call.
struct Shared {
  float *roots_y, *roots_x;
  float* table;         // T̂: (pair, x, y), two floats each
  float* grad_queries;  // (example, group), as packed queries
  float* sums;          // (task): y, or the gradient of V, where a group of channels is several tasks

  Shared(Arena& arena, const Plan& plan, bool backward) {
    roots_y = arena.take(roots_size(plan.height));
    roots_x = arena.take(roots_size(plan.width));
    table = arena.take(plan.pairs * plan.points * 2);
    grad_queries = backward ? arena.take(plan.p.batch * plan.groups * plan.queries_size()) : nullptr;
    sums = plan.parts > 1 ? arena.take(plan.tasks * (backward ? plan.values_size() : plan.outputs_size())) : nullptr;
  }

  // Number of floats that it takes.
  static int64_t size(const Plan& plan, bool backward) {
    Arena counter{nullptr, 0};
    Shared(counter, plan, backward);
    return counter.used;
  }
};

// Scratch memory of a slot.
struct Room {
  float *buffer_a, *buffer_b;  // for one transform
  float* values;               // V̂: (u, x, y) points
  float* lambda;               // λ_k along y in place and along x in frequencies: (row, x) points
  float* queries;              // (position, group of heads, k, head)
  float* outputs;              // y or its gradient: (position, head) points
  float* content;              // λc: (k) points
  float *grad_values, *grad_table, *grad_content;

  Room(Arena& arena, const Plan& plan, bool backward) {
    const Problem& p = plan.p;
    // The table's transform takes the memory for values and for λ.
    const int64_t longest = most(plan.height, plan.width) * kPoint;
    buffer_a = arena.take(longest);
    buffer_b = arena.take(longest);
    values = arena.take(p.intra_depth * plan.points * kPoint);
    lambda = arena.take(most(p.rows, p.extent_rows) * plan.pitch * kPoint);
    queries = arena.take(plan.queries_size());
    outputs = arena.take(plan.outputs_size());
    content = arena.take(p.dim_key * kPoint);
    grad_values = backward ? arena.take(p.intra_depth * plan.points * kPoint) : nullptr;
    grad_table = backward ? arena.take(plan.pairs * plan.points * 2) : nullptr;
    grad_content = backward ? arena.take(p.dim_key * kPoint) : nullptr;
  }

  // Number of floats that it takes.
  static int64_t size(const Plan& plan, bool backward) {
    Arena counter{nullptr, 0};
    Room(counter, plan, backward);
    return counter.used;
  }
};

// One call in progress: its plan, where its memory is, and its transforms.
struct Run {
  const KernelCall& call;
  const Plan plan;
  const bool backward;
  Arena arena;  // what the slots share, then a room for each of them
  const Shared shared;
  const int64_t room_size;
  const Transform along_y, along_x;

  Run(const KernelCall& c, bool is_backward)
      : call(c),
        plan(c.problem, c.slots),
        backward(is_backward),
        arena{c.scratch, 0},
        shared(arena, plan, backward),
        room_size(Room::size(plan, backward)),
        along_y(plan.height, shared.roots_y),
        along_x(plan.width, shared.roots_x) {
    make_roots(shared.roots_y, plan.height);
    make_roots(shared.roots_x, plan.width);
  }

  Room room(int64_t slot) const {
    Arena each{call.scratch + arena.used + slot * room_size, 0};
    return Room(each, plan, backward);
  }
};

INLINE void copy_points(float* to, int64_t to_step, const float* from, int64_t from_step, int64_t count) {
  for (int64_t i = 0; i < count; i++) {
    store(to + i * to_step * kPoint, load(from + i * from_step * kPoint));
    store(to + i * to_step * kPoint + kLanes, load(from + i * from_step * kPoint + kLanes));
  }
}

// Sums of the elements of four vectors.
typedef float Eight __attribute__((vector_size(32)));
INLINE Four fold(Four v) { return v; }
INLINE Four fold(Eight v) {
  return __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
}
#if LAMBDANETS_LANES == 16
INLINE Four fold(Vector v) {
  return fold(Eight(__builtin_shufflevector(v, v, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(v, v, 8, 9, 10, 11, 12, 13, 14, 15)));
}
#endif
INLINE Four sums_of_four(Vector a, Vector b, Vector c, Vector d) {
  const Four fa = fold(a), fb = fold(b), fc = fold(c), fd = fold(d);
  const Four ab = __builtin_shufflevector(fa, fb, 0, 4, 1, 5) + __builtin_shufflevector(fa, fb, 2, 6, 3, 7);
  const Four cd = __builtin_shufflevector(fc, fd, 0, 4, 1, 5) + __builtin_shufflevector(fc, fd, 2, 6, 3, 7);
  return __builtin_shufflevector(ab, cd, 0, 1, 4, 5) + __builtin_shufflevector(ab, cd, 2, 3, 6, 7);
}
INLINE void add_four(float* to, Four sum) {
  *reinterpret_cast<FourUnaligned*>(to) = *reinterpret_cast<const FourUnaligned*>(to) + sum;
}

// From rows of the grid in `lambda`, along x in frequencies, to all frequencies: (x, y) points in `to`, the rows
// placed at `first`, modulo the length.
static void finish_forward(const Run& run, const Room& room, const float* lambda, int64_t rows, int64_t first,
                           float* to) {
  const Plan& plan = run.plan;
  if (plan.height == 1) return copy_points(to, 1, lambda, 1, plan.width);
  for (int64_t x = 0; x < plan.width; x++) {
    clear(room.buffer_a, plan.height * kPoint);
    for (int64_t y = 0; y < rows; y++)
      copy_points(room.buffer_a + (y + first + plan.height) % plan.height * kPoint, 1,
                  lambda + (y * plan.pitch + x) * kPoint, 1, 1);
    const float* result = transform<false>(run.along_y, room.buffer_a, room.buffer_b);
    copy_points(to + x * plan.height * kPoint, 1, result, 1, plan.height);
  }
}

// T̂ for kLanes pairs of u and k: the conjugate, as for a correlation.
static void transform_table(const Run& run, const Room& room, int64_t item) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  const Tensor& table = run.call.table;
  const int64_t some = least(kLanes, plan.pairs - item * kLanes);
  for (int64_t y = 0; y < p.extent_rows; y++) {
    clear(room.buffer_a, plan.width * kPoint);
    for (int64_t lane = 0; lane < some; lane++) {
      const int64_t pair = item * kLanes + lane;
      const float* from = table.data + pair / p.dim_key * table.stride[0] + pair % p.dim_key * table.stride[1] +
                          y * table.stride[2];
      for (int64_t x = 0; x < p.extent_columns; x++)
        room.buffer_a[(x - p.origin_column + plan.width) % plan.width * kPoint + lane] = from[x * table.stride[3]];
    }
    const float* result = transform<false>(run.along_x, room.buffer_a, room.buffer_b);
    copy_points(room.lambda + y * plan.pitch * kPoint, 1, result, 1, plan.width);
  }
  finish_forward(run, room, room.lambda, p.extent_rows, -p.origin_row, room.values);
  for (int64_t lane = 0; lane < some; lane++) {
    float* to = run.shared.table + (item * kLanes + lane) * plan.points * 2;
    for (int64_t f = 0; f < plan.points; f++) {
      to[2 * f] = plan.scale * room.values[f * kPoint + lane];
      to[2 * f + 1] = -plan.scale * room.values[f * kPoint + kLanes + lane];
    }
  }
}

static inline void transform_tables(const Run& run, int64_t slot) {
  const int64_t items = ceil_div(run.plan.pairs, kLanes), slots = run.plan.slots;
  const Room room = run.room(slot);
  for (int64_t item = slot * items / slots; item < (slot + 1) * items / slots; item++)
    transform_table(run, room, item);
}

// A group of channels of an example and a part of k.
struct Task {
  int64_t number, group, example;   // `group` counts those of all examples
  int64_t first, count;             // channels
  int64_t first_key, last_key;

  Task(const Plan& plan, int64_t task) : number(task) {
    group = task / plan.parts;
    example = group / plan.groups;
    first = group % plan.groups * kPoint;
    count = least(kPoint, plan.p.dim_value - first);
    first_key = task % plan.parts * plan.p.dim_key / plan.parts;
    last_key = (task % plan.parts + 1) * plan.p.dim_key / plan.parts;
  }
};

INLINE Matrix channels_of(const Tensor& tensor, const Task& task, int64_t i, int64_t position) {
  return matrix(tensor, task.example, i, position, task.first);
}

static void transform_values(const Run& run, const Room& room, const Task& task) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    for (int64_t y = 0; y < p.rows; y++) {
      pack(room.buffer_a, kPoint, kPoint, channels_of(run.call.value, task, depth, y * p.columns), p.columns,
           task.count);
      for (int64_t i = 0; i < p.columns * kPoint; i += kLanes)
        store(room.buffer_a + i, plan.scale * load(room.buffer_a + i));
      clear(room.buffer_a + p.columns * kPoint, (plan.width - p.columns) * kPoint);
      const float* result = transform<false>(run.along_x, room.buffer_a, room.buffer_b);
      copy_points(room.lambda + y * plan.pitch * kPoint, 1, result, 1, plan.width);
    }
    finish_forward(run, room, room.lambda, p.rows, 0, room.values + depth * plan.points * kPoint);
  }
}

// One head of packed queries or their gradient: (position, k).
INLINE Matrix packed_head(const Plan& plan, float* queries, int64_t head) {
  const int64_t first = head / kGroupHeads * kGroupHeads;  // of its group
  return {queries + first * plan.p.dim_key + head % kGroupHeads, plan.heads * plan.p.dim_key, kGroupHeads};
}

static void pack_queries(const Run& run, const Room& room, int64_t example) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  clear(room.queries, plan.queries_size());
  for (int64_t head = 0; head < p.heads; head++)
    copy(packed_head(plan, room.queries, head), matrix(run.call.query, example, head, 0, 0), plan.positions, p.dim_key);
}

static void pack_content(const Run& run, const Room& room, const Task& task) {
  const Tensor& content = run.call.content;
  if (!content.data) return clear(room.content, run.plan.p.dim_key * kPoint);
  pack(room.content, kPoint, kPoint,
       {content.data + task.example * content.stride[0] + task.first * content.stride[2], content.stride[1],
        content.stride[2]},
       run.plan.p.dim_key, task.count);
}

// Σ_u T̂_uk·V̂_u of `count` frequencies from `first` on.
static void multiply(const Run& run, const Room& room, int64_t key, int64_t first, int64_t count, float* to) {
  const Plan& plan = run.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++) {
    const float* table = run.shared.table + ((depth * plan.p.dim_key + key) * plan.points + first) * 2;
    const float* values = room.values + (depth * plan.points + first) * kPoint;
    for (int64_t f = 0; f < count; f++) {
      const float re = table[2 * f], im = table[2 * f + 1];
      const Vector r = load(values + f * kPoint), i = load(values + f * kPoint + kLanes);
      float* sum = to + f * kPoint;
      Vector sum_r = re * r - im * i, sum_i = re * i + im * r;
      if (depth > 0) sum_r += load(sum), sum_i += load(sum + kLanes);
      store(sum, sum_r);
      store(sum + kLanes, sum_i);
    }
  }
}

// λ_k of all rows, along x still in frequencies, into room.lambda.
static void lambda_rows(const Run& run, const Room& room, int64_t key) {
  const Plan& plan = run.plan;
  if (plan.height == 1) return multiply(run, room, key, 0, plan.width, room.lambda);
  for (int64_t x = 0; x < plan.width; x++) {
    multiply(run, room, key, x * plan.height, plan.height, room.buffer_a);
    const float* result = transform<true>(run.along_y, room.buffer_a, room.buffer_b);
    copy_points(room.lambda + x * kPoint, plan.pitch, result, 1, plan.p.rows);
  }
}

// λ_k of one row; in one of the two buffers, which the next call overwrites.
static const float* lambda_row(const Run& run, const Room& room, int64_t row) {
  copy_points(room.buffer_a, 1, room.lambda + row * run.plan.pitch * kPoint, 1, run.plan.width);
  return transform<true>(run.along_x, room.buffer_a, room.buffer_b);
}

}  // namespace spectral
}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
