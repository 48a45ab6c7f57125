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
// A task is such a group of channels of one example, or a part of k of it where there are more slots than groups. Sums of the table's gradient are a slot's own and added in the order
// of the slots, those of the queries' gradient in the order of the groups.
#include "spectral.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

using namespace spectral;

static void write_rows(const Work& work, const Task& task, float* rows) {
  const Plan& plan = work.plan;
  for (int64_t head = 0; head < plan.p.heads; head++)
    copy(channels_of(work.call.out, task, head, 0), {rows + head * kPoint, plan.heads * kPoint, 1}, plan.positions,
         task.count);
}

static void write_values(const Work& work, const Task& task, float* sums) {
  const Plan& plan = work.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++)
    copy(channels_of(work.call.grad_value, task, depth, 0), {sums + depth * plan.positions * kPoint, kPoint, 1},
         plan.positions, task.count);
}

// Adds what the parts of k made of a group of channels, in their order, and writes it.
static void join_parts(int64_t pair, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const int64_t size = work.backward ? plan.values_size() : plan.rows_size();
  const Task task(plan, pair * plan.parts);
  float* sum = work.shared.sums + task.number * size;
  for (int64_t part = 1; part < plan.parts; part++) add(sum, sum + part * size, size);
  work.backward ? write_values(work, task, sum) : write_rows(work, task, sum);
}

static void task_forward(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  transform_values(work, room, task);
  pack_content(work, room, task);
  float* rows = plan.parts == 1 ? room.rows : work.shared.sums + task.number * plan.rows_size();
  clear(rows, plan.rows_size());
  for (int64_t key = task.first_key; key < task.last_key; key++) {
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
          float* to = rows + (position * plan.heads + head) * kPoint;
          store(to, load(to) + factor * r);
          store(to + kLanes, load(to + kLanes) + factor * i);
        }
      }
    }
  }
  if (plan.parts == 1) write_rows(work, task, rows);
}

static void slot_table(int64_t slot, void* context) { transform_tables(*static_cast<const Work*>(context), slot); }

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

// Adds to dV̂ and dT̂ what `count` frequencies of G from `first` on give.
static void multiply_backward(const Work& work, const Room& room, int64_t key, int64_t first, int64_t count,
                              const float* grad) {
  const Plan& plan = work.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++) {
    const int64_t pair_at = ((depth * plan.p.dim_key + key) * plan.points + first) * 2;
    const int64_t value_at = (depth * plan.points + first) * kPoint;
    const float *table = work.shared.table + pair_at, *values = room.values + value_at;
    float *grad_table = room.grad_table + pair_at, *grad_values = room.grad_values + value_at;
    Vector held_r = zero(), held_i = zero();
    for (int64_t f = 0; f < count; f++) {
      const float re = table[2 * f], im = table[2 * f + 1];
      const Vector r = load(grad + f * kPoint), i = load(grad + f * kPoint + kLanes);
      const Vector value_r = load(values + f * kPoint), value_i = load(values + f * kPoint + kLanes);
      float* to = grad_values + f * kPoint;
      store(to, load(to) + re * r + im * i);
      store(to + kLanes, load(to + kLanes) + re * i - im * r);
      const Vector product_r = value_r * r + value_i * i, product_i = value_r * i - value_i * r;
      if (f % 2)
        add_four(grad_table + 2 * f - 2, sums_of_four(held_r, held_i, product_r, product_i));
      else
        held_r = product_r, held_i = product_i;
    }
    if (count % 2) {
      const Four sum = sums_of_four(held_r, held_i, zero(), zero());
      grad_table[2 * count - 2] += sum[0];
      grad_table[2 * count - 1] += sum[1];
    }
  }
}

// From dλ_k of all rows, along x in frequencies, to dV̂ and dT̂.
static void columns_backward(const Work& work, const Room& room, int64_t key) {
  const Plan& plan = work.plan;
  if (plan.height == 1) return multiply_backward(work, room, key, 0, plan.width, room.lambda);
  for (int64_t x = 0; x < plan.width; x++) {
    copy_points(room.buffer_a, 1, room.lambda + x * kPoint, plan.width, plan.p.rows);
    clear(room.buffer_a + plan.p.rows * kPoint, (plan.height - plan.p.rows) * kPoint);
    const float* grad = transform<false>(work.along_y, room.buffer_a, room.buffer_b);
    multiply_backward(work, room, key, x * plan.height, plan.height, grad);
  }
}

static void task_backward(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  float* grad_queries = work.shared.grad_queries + task.pair * plan.queries_size();
  // Other parts write the other k of it.
  for (int64_t i = 0; i < plan.positions * plan.heads / kHeads; i++)
    clear(grad_queries + (i * p.dim_key + task.first_key) * kHeads, (task.last_key - task.first_key) * kHeads);
  clear(room.grad_content, p.dim_key * kPoint);
  clear(room.grad_values, p.intra_depth * plan.points * kPoint);
  transform_values(work, room, task);
  pack_content(work, room, task);
  clear(room.rows, plan.rows_size());
  for (int64_t head = 0; head < p.heads; head++)
    pack(room.rows + head * kPoint, plan.heads * kPoint, kPoint, channels_of(work.call.out, task, head, 0),
         plan.positions, task.count);
  for (int64_t key = task.first_key; key < task.last_key; key++) {
    lambda_rows(work, room, key);
    for (int64_t y = 0; y < p.rows; y++) {
      float* grad = row_backward(work, room, y, key, lambda_row(work, room, y), grad_queries);
      float* other = grad == room.buffer_a ? room.buffer_b : room.buffer_a;
      const float* result = transform<false>(work.along_x, grad, other);
      copy_points(room.lambda + y * plan.width * kPoint, 1, result, 1, plan.width);
    }
    columns_backward(work, room, key);
  }
  // Its spectra are not needed any more.
  float* sums = plan.parts == 1 ? room.values : work.shared.sums + task.number * plan.values_size();
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    for (int64_t x = 0; x < plan.width; x++) {
      copy_points(room.buffer_a, 1, room.grad_values + (depth * plan.points + x * plan.height) * kPoint, 1,
                  plan.height);
      const float* result = transform<true>(work.along_y, room.buffer_a, room.buffer_b);
      copy_points(room.lambda + x * kPoint, plan.width, result, 1, p.rows);
    }
    for (int64_t y = 0; y < p.rows; y++)
      copy_points(sums + (depth * plan.positions + y * p.columns) * kPoint, 1, lambda_row(work, room, y), 1, p.columns);
  }
  if (plan.parts == 1) write_values(work, task, sums);
  const Tensor& content = work.call.grad_content;
  if (content.data)
    copy({content.data + task.example * content.stride[0] + task.first_key * content.stride[1] +
              task.first * content.stride[2],
          content.stride[1], content.stride[2]},
         {room.grad_content + task.first_key * kPoint, kPoint, 1}, task.last_key - task.first_key, task.count);
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
    const float* result = transform<false>(work.along_y, room.buffer_a, room.buffer_b);
    for (int64_t y = 0; y < p.extent_rows; y++)
      copy_points(room.lambda + (y * plan.width + x) * kPoint, 1,
                  result + (y - p.origin_row + plan.height) % plan.height * kPoint, 1, 1);
  }
  const Tensor& table = work.call.grad_table;
  const float scale = 1.0f / static_cast<float>(plan.points);
  for (int64_t y = 0; y < p.extent_rows; y++) {
    copy_points(room.buffer_a, 1, room.lambda + y * plan.width * kPoint, 1, plan.width);
    const float* result = transform<false>(work.along_x, room.buffer_a, room.buffer_b);
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

// First the table's gradient, slot by slot, then the queries', example by example, then the values' where in parts.
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
  if (item >= plan.slots + p.batch) return join_parts(item - plan.slots - p.batch, context);
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
  if (work.plan.parts > 1) parallel(call.problem.batch * work.plan.groups, join_parts, &work);
}

void backward(const Call& call) {
  Work work(call, true);
  parallel(work.plan.slots, slot_table, &work);
  parallel(work.plan.slots, slot_backward, &work);
  const int64_t joined = work.plan.parts > 1 ? call.problem.batch * work.plan.groups : 0;
  parallel(work.plan.slots + call.problem.batch + joined, finish_backward, &work);
}

}  // namespace

extern const Kernel kSpectral;
const Kernel kSpectral{scratch, forward, backward};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
