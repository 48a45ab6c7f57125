// Spectral, vectorised over channels: λ is a correlation of V with the table, so a product of their Fourier transforms.
//
//     λ_k = F⁻¹(Σ_u T̂_uk · V̂_u),   y += q_k · λ_k
//
// A transform carries 2·kLanes real channels of V: half of them as real parts, half as imaginary parts, which a table of
// real numbers does not mix. V̂ is made once; then one k after the other is transformed back along y, where the rows
// beyond the grid are dropped, and along x, and applied to the queries at once. The sum over u is in frequencies, so that
// u costs little. Backward makes λ_k again:
//
//     dq_k = dY·λ_k,   dλ_k = Σ_h q_k · dY,   G = F(dλ_k),   dV̂_u += conj(T̂_uk) · G,   dT̂_uk = Σ conj(V̂_u) · G
//
// A task is such a group of channels of one example. Sums of the table's gradient are a slot's own and added in the order
// of the slots, those of the queries' gradient in the order of the groups.
#include "copies.h"
#include "fft.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

// Heads side by side in packed queries.
constexpr int kHeads = 4;

struct Plan {
  Problem p;
  int64_t positions, heads, pairs;    // heads: padded; pairs of u and k
  int64_t height, width, points;      // lengths of the transforms along y and x, and their product
  int64_t groups, tasks, slots;       // groups of channels

  Plan(const Problem& problem, int64_t slots_wanted) : p(problem) {
    positions = p.rows * p.columns;
    heads = round_up(p.heads, kHeads);
    pairs = p.intra_depth * p.dim_key;
    height = length_for(p.rows, p.extent_rows, p.origin_row);
    width = length_for(p.columns, p.extent_columns, p.origin_column);
    points = height * width;
    groups = ceil_div(p.dim_value, kPoint);
    tasks = p.batch * groups;
    slots = most(1, least(slots_wanted, tasks));
  }

  // No offset may wrap around into the grid.
  static int64_t length_for(int64_t size, int64_t extent, int64_t origin) {
    return good_length(size + most(origin, extent - 1 - origin));
  }

  int64_t first_task(int64_t slot) const { return slot * tasks / slots; }
  int64_t queries_size() const { return positions * heads * p.dim_key; }
};

struct Shared {
  float *roots_y, *roots_x;
  float* table;         // T̂ over the number of points: (pair, x, y), two floats each
  float* grad_queries;  // (example, group), as packed queries

  Shared(Arena& arena, const Plan& plan, bool backward) {
    roots_y = arena.take(roots_size(plan.height));
    roots_x = arena.take(roots_size(plan.width));
    table = arena.take(plan.pairs * plan.points * 2);
    grad_queries = backward ? arena.take(plan.tasks * plan.queries_size()) : nullptr;
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
    rows = arena.take(plan.positions * plan.heads * kPoint);
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
  int64_t room_size;

  Work(const Call& c, bool is_backward)
      : call(c), plan(c.problem, c.slots), backward(is_backward), arena{c.scratch, 0}, shared(arena, plan, backward) {
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
  Transform along_y() const { return {plan.height, shared.roots_y}; }
  Transform along_x() const { return {plan.width, shared.roots_x}; }
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
  for (int64_t x = 0; x < plan.width; x++) {
    clear(room.buffer_a, plan.height * kPoint);
    for (int64_t y = 0; y < rows; y++)
      copy_points(room.buffer_a + (y + first + plan.height) % plan.height * kPoint, 1,
                  lambda + (y * plan.width + x) * kPoint, 1, 1);
    const float* result = transform<false>(work.along_y(), room.buffer_a, room.buffer_b);
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
    const float* result = transform<false>(work.along_x(), room.buffer_a, room.buffer_b);
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

static void slot_table(int64_t slot, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const int64_t items = ceil_div(work.plan.pairs, kLanes), slots = work.plan.slots;
  const Room room = work.room(slot);
  for (int64_t item = slot * items / slots; item < (slot + 1) * items / slots; item++)
    transform_table(work, room, item);
}

// A group of channels of an example.
struct Task {
  int64_t example, group, first, count;

  Task(const Plan& plan, int64_t number) {
    example = number / plan.groups;
    group = number % plan.groups;
    first = group * kPoint;
    count = least(kPoint, plan.p.dim_value - first);
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
      const float* result = transform<false>(work.along_x(), room.buffer_a, room.buffer_b);
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

// λ_k of all rows, along x still in frequencies, into room.lambda.
static void lambda_rows(const Work& work, const Room& room, int64_t key) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  for (int64_t x = 0; x < plan.width; x++) {
    for (int64_t depth = 0; depth < p.intra_depth; depth++) {
      const float* table = work.shared.table + ((depth * p.dim_key + key) * plan.points + x * plan.height) * 2;
      const float* values = room.values + (depth * plan.points + x * plan.height) * kPoint;
      for (int64_t y = 0; y < plan.height; y++) {
        const float re = table[2 * y], im = table[2 * y + 1];
        const Vector r = load(values + y * kPoint), i = load(values + y * kPoint + kLanes);
        float* to = room.buffer_a + y * kPoint;
        Vector sum_r = re * r - im * i, sum_i = re * i + im * r;
        if (depth > 0) sum_r += load(to), sum_i += load(to + kLanes);
        store(to, sum_r);
        store(to + kLanes, sum_i);
      }
    }
    const float* result = transform<true>(work.along_y(), room.buffer_a, room.buffer_b);
    copy_points(room.lambda + x * kPoint, plan.width, result, 1, p.rows);
  }
}

// λ_k of one row; in one of the two buffers, which the next call overwrites.
static const float* lambda_row(const Work& work, const Room& room, int64_t row) {
  copy_points(room.buffer_a, 1, room.lambda + row * work.plan.width * kPoint, 1, work.plan.width);
  return transform<true>(work.along_x(), room.buffer_a, room.buffer_b);
}

static void task_forward(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  transform_values(work, room, task);
  pack_content(work, room, task);
  clear(room.rows, plan.positions * plan.heads * kPoint);
  for (int64_t key = 0; key < p.dim_key; key++) {
    lambda_rows(work, room, key);
    const Vector content_r = load(room.content + key * kPoint), content_i = load(room.content + key * kPoint + kLanes);
    for (int64_t y = 0; y < p.rows; y++) {
      const float* lambda = lambda_row(work, room, y);
      for (int64_t x = 0; x < p.columns; x++, lambda += kPoint) {
        const int64_t position = y * p.columns + x;
        const Vector r = load(lambda) + content_r, i = load(lambda + kLanes) + content_i;
        for (int64_t head = 0; head < p.heads; head++) {
          const float factor =
              room.queries[(position * plan.heads + head / kHeads * kHeads) * p.dim_key + key * kHeads + head % kHeads];
          float* to = room.rows + (position * plan.heads + head) * kPoint;
          store(to, load(to) + factor * r);
          store(to + kLanes, load(to + kLanes) + factor * i);
        }
      }
    }
  }
  for (int64_t head = 0; head < p.heads; head++)
    copy(channels_of(work.call.out, task, head, 0), {room.rows + head * kPoint, plan.heads * kPoint, 1}, plan.positions,
         task.count);
}

static void slot_forward(int64_t slot, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Room room = work.room(slot);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) pack_queries(work, room, task.example);
    example = task.example;
    task_forward(work, room, task);
  }
}

// Of one row and k: adds dY·λ to the queries' gradient and returns dλ = Σ_h q·dY in a buffer, zeros behind the grid.
static float* row_backward(const Work& work, const Room& room, int64_t row, int64_t key, const float* lambda,
                           float* grad_queries) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  float* grad_lambda = lambda == room.buffer_a ? room.buffer_b : room.buffer_a;
  const Vector content_r = load(room.content + key * kPoint), content_i = load(room.content + key * kPoint + kLanes);
  Vector total_r = zero(), total_i = zero();
  for (int64_t x = 0; x < p.columns; x++) {
    const int64_t position = row * p.columns + x;
    const Vector r = load(lambda + x * kPoint) + content_r, i = load(lambda + x * kPoint + kLanes) + content_i;
    Vector sum_r = zero(), sum_i = zero();
    for (int64_t head = 0; head < plan.heads; head += kHeads) {
      const float* grad = room.rows + (position * plan.heads + head) * kPoint;
      const int64_t at = (position * plan.heads + head) * p.dim_key + key * kHeads;
      Vector product[kHeads];
#pragma GCC unroll 4
      for (int j = 0; j < kHeads; j++) {
        const Vector grad_r = load(grad + j * kPoint), grad_i = load(grad + j * kPoint + kLanes);
        const float factor = room.queries[at + j];
        product[j] = grad_r * r + grad_i * i;
        sum_r += factor * grad_r, sum_i += factor * grad_i;
      }
      add_four(grad_queries + at, sums_of_four(product[0], product[1], product[2], product[3]));
    }
    store(grad_lambda + x * kPoint, sum_r);
    store(grad_lambda + x * kPoint + kLanes, sum_i);
    total_r += sum_r, total_i += sum_i;
  }
  clear(grad_lambda + p.columns * kPoint, (plan.width - p.columns) * kPoint);
  float* total = room.grad_content + key * kPoint;
  store(total, load(total) + total_r);
  store(total + kLanes, load(total + kLanes) + total_i);
  return grad_lambda;
}

// From dλ_k, all rows, along x in frequencies: one column to dV̂ and dT̂.
static void column_backward(const Work& work, const Room& room, int64_t key, int64_t x) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  copy_points(room.buffer_a, 1, room.lambda + x * kPoint, plan.width, p.rows);
  clear(room.buffer_a + p.rows * kPoint, (plan.height - p.rows) * kPoint);
  const float* grad = transform<false>(work.along_y(), room.buffer_a, room.buffer_b);
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    const int64_t pair_at = ((depth * p.dim_key + key) * plan.points + x * plan.height) * 2;
    const int64_t value_at = (depth * plan.points + x * plan.height) * kPoint;
    const float *table = work.shared.table + pair_at, *values = room.values + value_at;
    float *grad_table = room.grad_table + pair_at, *grad_values = room.grad_values + value_at;
    Vector held_r = zero(), held_i = zero();
    for (int64_t y = 0; y < plan.height; y++) {
      const float re = table[2 * y], im = table[2 * y + 1];
      const Vector r = load(grad + y * kPoint), i = load(grad + y * kPoint + kLanes);
      const Vector value_r = load(values + y * kPoint), value_i = load(values + y * kPoint + kLanes);
      float* to = grad_values + y * kPoint;
      store(to, load(to) + re * r + im * i);
      store(to + kLanes, load(to + kLanes) + re * i - im * r);
      const Vector product_r = value_r * r + value_i * i, product_i = value_r * i - value_i * r;
      if (y % 2)
        add_four(grad_table + 2 * y - 2, sums_of_four(held_r, held_i, product_r, product_i));
      else
        held_r = product_r, held_i = product_i;
    }
    if (plan.height % 2) {
      const Four sum = sums_of_four(held_r, held_i, zero(), zero());
      grad_table[2 * plan.height - 2] += sum[0];
      grad_table[2 * plan.height - 1] += sum[1];
    }
  }
}

static void task_backward(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  float* grad_queries = work.shared.grad_queries + (task.example * plan.groups + task.group) * plan.queries_size();
  clear(grad_queries, plan.queries_size());
  clear(room.grad_content, p.dim_key * kPoint);
  clear(room.grad_values, p.intra_depth * plan.points * kPoint);
  transform_values(work, room, task);
  pack_content(work, room, task);
  clear(room.rows, plan.positions * plan.heads * kPoint);
  for (int64_t head = 0; head < p.heads; head++)
    pack(room.rows + head * kPoint, plan.heads * kPoint, kPoint, channels_of(work.call.out, task, head, 0),
         plan.positions, task.count);
  for (int64_t key = 0; key < p.dim_key; key++) {
    lambda_rows(work, room, key);
    for (int64_t y = 0; y < p.rows; y++) {
      float* grad = row_backward(work, room, y, key, lambda_row(work, room, y), grad_queries);
      float* other = grad == room.buffer_a ? room.buffer_b : room.buffer_a;
      const float* result = transform<false>(work.along_x(), grad, other);
      copy_points(room.lambda + y * plan.width * kPoint, 1, result, 1, plan.width);
    }
    for (int64_t x = 0; x < plan.width; x++) column_backward(work, room, key, x);
  }
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    for (int64_t x = 0; x < plan.width; x++) {
      copy_points(room.buffer_a, 1, room.grad_values + (depth * plan.points + x * plan.height) * kPoint, 1,
                  plan.height);
      const float* result = transform<true>(work.along_y(), room.buffer_a, room.buffer_b);
      copy_points(room.lambda + x * kPoint, plan.width, result, 1, p.rows);
    }
    for (int64_t y = 0; y < p.rows; y++) {
      float* result = const_cast<float*>(lambda_row(work, room, y));
      copy(channels_of(work.call.grad_value, task, depth, y * p.columns), {result, kPoint, 1}, p.columns, task.count);
    }
  }
  const Tensor& content = work.call.grad_content;
  if (content.data)
    copy({content.data + task.example * content.stride[0] + task.first * content.stride[2], content.stride[1],
          content.stride[2]},
         {room.grad_content, kPoint, 1}, p.dim_key, task.count);
}

static void slot_backward(int64_t slot, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Room room = work.room(slot);
  clear(room.grad_table, plan.pairs * plan.points * 2);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) pack_queries(work, room, task.example);
    example = task.example;
    task_backward(work, room, task);
  }
}

// The table's gradient for kLanes pairs of u and k: F(dT̂) where the table has offsets, over the number of points.
static void table_gradient(const Work& work, int64_t item, const Room& room) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  const int64_t some = least(kLanes, plan.pairs - item * kLanes);
  for (int64_t x = 0; x < plan.width; x++) {
    clear(room.buffer_a, plan.height * kPoint);
    for (int64_t lane = 0; lane < some; lane++) {
      const int64_t at = ((item * kLanes + lane) * plan.points + x * plan.height) * 2;
      for (int64_t slot = 0; slot < plan.slots; slot++) {
        const float* from = work.room(slot).grad_table + at;
        for (int64_t y = 0; y < plan.height; y++) {
          room.buffer_a[y * kPoint + lane] += from[2 * y];
          room.buffer_a[y * kPoint + kLanes + lane] += from[2 * y + 1];
        }
      }
    }
    const float* result = transform<false>(work.along_y(), room.buffer_a, room.buffer_b);
    for (int64_t y = 0; y < p.extent_rows; y++)
      copy_points(room.lambda + (y * plan.width + x) * kPoint, 1,
                  result + (y - p.origin_row + plan.height) % plan.height * kPoint, 1, 1);
  }
  const Tensor& table = work.call.grad_table;
  const float scale = 1.0f / static_cast<float>(plan.points);
  for (int64_t y = 0; y < p.extent_rows; y++) {
    copy_points(room.buffer_a, 1, room.lambda + y * plan.width * kPoint, 1, plan.width);
    const float* result = transform<false>(work.along_x(), room.buffer_a, room.buffer_b);
    for (int64_t lane = 0; lane < some; lane++) {
      const int64_t pair = item * kLanes + lane;
      float* to = table.data + pair / p.dim_key * table.stride[0] + pair % p.dim_key * table.stride[1] +
                  y * table.stride[2];
      for (int64_t x = 0; x < p.extent_columns; x++)
        to[x * table.stride[3]] =
            scale * result[(x - p.origin_column + plan.width) % plan.width * kPoint + lane];
    }
  }
}

// First the table's gradient, slot by slot, then the queries', example by example.
static void finish_backward(int64_t item, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  if (item < plan.slots) {
    const Room room = work.room(item);
    const int64_t items = ceil_div(plan.pairs, kLanes);
    for (int64_t i = item * items / plan.slots; i < (item + 1) * items / plan.slots; i++)
      table_gradient(work, i, room);
    return;
  }
  const int64_t example = item - plan.slots, size = plan.queries_size();
  float* sum = work.shared.grad_queries + example * plan.groups * size;
  for (int64_t group = 1; group < plan.groups; group++) add(sum, sum + group * size, size);
  for (int64_t head = 0; head < p.heads; head++)
    copy(matrix(work.call.grad_query, example, head, 0, 0),
         {sum + head / kHeads * p.dim_key * kHeads + head % kHeads, plan.heads * p.dim_key, kHeads}, plan.positions,
         p.dim_key);
}

int64_t scratch(const Problem& problem, int64_t slots, bool, bool backward) {
  const Plan plan(problem, slots);
  Arena shared{nullptr, 0}, each{nullptr, 0};
  Shared(shared, plan, backward);
  Room(each, plan, backward);
  return shared.used + plan.slots * each.used;
}

void forward(const Call& call) {
  Work work(call, false);
  parallel(work.plan.slots, slot_table, &work);
  parallel(work.plan.slots, slot_forward, &work);
}

void backward(const Call& call) {
  Work work(call, true);
  parallel(work.plan.slots, slot_table, &work);
  parallel(work.plan.slots, slot_backward, &work);
  parallel(work.plan.slots + call.problem.batch, finish_backward, &work);
}

}  // namespace

extern const Kernel kSpectral;
const Kernel kSpectral{scratch, forward, backward};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
