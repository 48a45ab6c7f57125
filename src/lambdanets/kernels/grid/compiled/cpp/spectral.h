// What both directions of the spectral kernel share: its plan and memory, and the transforms of the table, of V and of λ.
#pragma once

#include "copies.h"
#include "fft.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace spectral {

// Heads side by side in packed queries.
constexpr int kHeads = 4;

struct Plan {
  Problem p;
  int64_t positions, heads, pairs;      // heads: padded; pairs of u and k
  int64_t height, width, points;        // lengths of the transforms along y and x, and their product
  int64_t groups, parts, tasks, slots;  // groups of channels, parts of k

  Plan(const Problem& problem, int64_t slots_wanted) : p(problem) {
    positions = p.rows * p.columns;
    heads = round_up(p.heads, kHeads);
    pairs = p.intra_depth * p.dim_key;
    height = length_for(p.rows, p.extent_rows, p.origin_row);
    width = length_for(p.columns, p.extent_columns, p.origin_column);
    points = height * width;
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
  int64_t rows_size() const { return positions * heads * kPoint; }
  int64_t values_size() const { return p.intra_depth * positions * kPoint; }
};

struct Shared {
  float *roots_y, *roots_x;
  float* table;         // T̂ over the number of points: (pair, x, y), two floats each
  float* grad_queries;  // (example, group), as packed queries
  float* sums;          // (task): y, or the gradient of V, where a group of channels is several tasks

  Shared(Arena& arena, const Plan& plan, bool backward) {
    roots_y = arena.take(roots_size(plan.height));
    roots_x = arena.take(roots_size(plan.width));
    table = arena.take(plan.pairs * plan.points * 2);
    grad_queries = backward ? arena.take(plan.p.batch * plan.groups * plan.queries_size()) : nullptr;
    sums = plan.parts > 1 ? arena.take(plan.tasks * (backward ? plan.values_size() : plan.rows_size())) : nullptr;
  }
};

struct Room {
  float *buffer_a, *buffer_b;  // for one transform
  float* values;               // V̂: (u, x, y) points
  float* lambda;               // λ_k along y in place and along x in frequencies: (row, x) points
  float* queries;              // (position, group of heads, k, head)
  float* rows;                 // y or its gradient: (position, head) points
  float* content;              // λc: (k) points
  float *grad_values, *grad_table, *grad_content;

  Room(Arena& arena, const Plan& plan, bool backward) {
    const Problem& p = plan.p;
    // The table's transform works in the rooms for values and for λ.
    const int64_t longest = most(plan.height, plan.width) * kPoint;
    buffer_a = arena.take(longest);
    buffer_b = arena.take(longest);
    values = arena.take(p.intra_depth * plan.points * kPoint);
    lambda = arena.take(most(p.rows, p.extent_rows) * plan.width * kPoint);
    queries = arena.take(plan.queries_size());
    rows = arena.take(plan.rows_size());
    content = arena.take(p.dim_key * kPoint);
    grad_values = backward ? arena.take(p.intra_depth * plan.points * kPoint) : nullptr;
    grad_table = backward ? arena.take(plan.pairs * plan.points * 2) : nullptr;
    grad_content = backward ? arena.take(p.dim_key * kPoint) : nullptr;
  }
};

struct Work {
  const Call& call;
  const Plan plan;
  const bool backward;
  Arena arena;
  Shared shared;
  const Transform along_y, along_x;
  int64_t room_size;

  Work(const Call& c, bool is_backward)
      : call(c), plan(c.problem, c.slots), backward(is_backward), arena{c.scratch, 0}, shared(arena, plan, backward),
        along_y(plan.height, shared.roots_y),
        along_x(plan.width, shared.roots_x) {
    Arena each{nullptr, 0};
    Room(each, plan, backward);
    room_size = each.used;
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
static void finish_forward(const Work& work, const Room& room, const float* lambda, int64_t rows, int64_t first,
                           float* to) {
  const Plan& plan = work.plan;
  if (plan.height == 1) return copy_points(to, 1, lambda, 1, plan.width);
  for (int64_t x = 0; x < plan.width; x++) {
    clear(room.buffer_a, plan.height * kPoint);
    for (int64_t y = 0; y < rows; y++)
      copy_points(room.buffer_a + (y + first + plan.height) % plan.height * kPoint, 1,
                  lambda + (y * plan.width + x) * kPoint, 1, 1);
    const float* result = transform<false>(work.along_y, room.buffer_a, room.buffer_b);
    copy_points(to + x * plan.height * kPoint, 1, result, 1, plan.height);
  }
}

// T̂ for kLanes pairs of u and k: the conjugate, as for a correlation, over the number of points.
static void transform_table(const Work& work, const Room& room, int64_t item) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  const Tensor& table = work.call.table;
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
    const float* result = transform<false>(work.along_x, room.buffer_a, room.buffer_b);
    copy_points(room.lambda + y * plan.width * kPoint, 1, result, 1, plan.width);
  }
  finish_forward(work, room, room.lambda, p.extent_rows, -p.origin_row, room.values);
  const float scale = 1.0f / static_cast<float>(plan.points);
  for (int64_t lane = 0; lane < some; lane++) {
    float* to = work.shared.table + (item * kLanes + lane) * plan.points * 2;
    for (int64_t f = 0; f < plan.points; f++) {
      to[2 * f] = scale * room.values[f * kPoint + lane];
      to[2 * f + 1] = -scale * room.values[f * kPoint + kLanes + lane];
    }
  }
}

static inline void transform_tables(const Work& work, int64_t slot) {
  const int64_t items = ceil_div(work.plan.pairs, kLanes), slots = work.plan.slots;
  const Room room = work.room(slot);
  for (int64_t item = slot * items / slots; item < (slot + 1) * items / slots; item++)
    transform_table(work, room, item);
}

// A group of channels of an example and a part of k.
struct Task {
  int64_t number, pair, example, first, count, first_key, last_key;

  Task(const Plan& plan, int64_t task) : number(task) {
    pair = task / plan.parts;
    example = pair / plan.groups;
    first = pair % plan.groups * kPoint;
    count = least(kPoint, plan.p.dim_value - first);
    first_key = task % plan.parts * plan.p.dim_key / plan.parts;
    last_key = (task % plan.parts + 1) * plan.p.dim_key / plan.parts;
  }
};

INLINE Matrix channels_of(const Tensor& tensor, const Task& task, int64_t i, int64_t position) {
  return matrix(tensor, task.example, i, position, task.first);
}

static void transform_values(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    for (int64_t y = 0; y < p.rows; y++) {
      pack(room.buffer_a, kPoint, kPoint, channels_of(work.call.value, task, depth, y * p.columns), p.columns,
           task.count);
      clear(room.buffer_a + p.columns * kPoint, (plan.width - p.columns) * kPoint);
      const float* result = transform<false>(work.along_x, room.buffer_a, room.buffer_b);
      copy_points(room.lambda + y * plan.width * kPoint, 1, result, 1, plan.width);
    }
    finish_forward(work, room, room.lambda, p.rows, 0, room.values + depth * plan.points * kPoint);
  }
}

static void pack_queries(const Work& work, const Room& room, int64_t example) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  clear(room.queries, plan.queries_size());
  for (int64_t head = 0; head < p.heads; head++)
    copy({room.queries + head / kHeads * p.dim_key * kHeads + head % kHeads, plan.heads * p.dim_key, kHeads},
         matrix(work.call.query, example, head, 0, 0), plan.positions, p.dim_key);
}

static void pack_content(const Work& work, const Room& room, const Task& task) {
  const Tensor& content = work.call.content;
  if (!content.data) return clear(room.content, work.plan.p.dim_key * kPoint);
  pack(room.content, kPoint, kPoint,
       {content.data + task.example * content.stride[0] + task.first * content.stride[2], content.stride[1],
        content.stride[2]},
       work.plan.p.dim_key, task.count);
}

// Σ_u T̂_uk·V̂_u of `count` frequencies from `first` on.
static void multiply(const Work& work, const Room& room, int64_t key, int64_t first, int64_t count, float* to) {
  const Plan& plan = work.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++) {
    const float* table = work.shared.table + ((depth * plan.p.dim_key + key) * plan.points + first) * 2;
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
static void lambda_rows(const Work& work, const Room& room, int64_t key) {
  const Plan& plan = work.plan;
  if (plan.height == 1) return multiply(work, room, key, 0, plan.width, room.lambda);
  for (int64_t x = 0; x < plan.width; x++) {
    multiply(work, room, key, x * plan.height, plan.height, room.buffer_a);
    const float* result = transform<true>(work.along_y, room.buffer_a, room.buffer_b);
    copy_points(room.lambda + x * kPoint, plan.width, result, 1, plan.p.rows);
  }
}

// λ_k of one row; in one of the two buffers, which the next call overwrites.
static const float* lambda_row(const Work& work, const Room& room, int64_t row) {
  copy_points(room.buffer_a, 1, room.lambda + row * work.plan.width * kPoint, 1, work.plan.width);
  return transform<true>(work.along_x, room.buffer_a, room.buffer_b);
}

}  // namespace spectral
}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
