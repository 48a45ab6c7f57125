// Spectral, vectorised over channels: λ is a correlation of V with the table, so a product of their Fourier
// transforms.
//
//     λ_k = F⁻¹(Σ_u T̂_uk · V̂_u),   y += q_k · λ_k
//
// A transform carries 2·kLanes real channels of V: half of them as real parts, half as imaginary parts, which a table
// of real numbers does not mix. V̂ is made once; then one k after the other is transformed back along y, where the rows
// beyond the grid are dropped, and along x, and applied to the queries at once. The sum over u is in frequencies, so
// that u costs little. Backward makes λ_k again:
//
//     dq_k = dY·λ_k,   dλ_k = Σ_h q_k · dY,   G = F(dλ_k),
//     dV̂_u += conj(T̂_uk) · G,   dT̂_uk = Σ conj(V̂_u) · G
//
//     point  a number for each channel of a group, kPoint floats: the real parts, then the imaginary parts
//     group  kPoint channels of V; groups of heads are kGroupHeads heads side by side in packed queries
//     pair   a u and a k of the table
//     part   some k of a group, where there are more slots than groups
//     task   a part of a group of one example
//     slot   tasks that follow each other, with spectra and sums of their own; slots run in parallel
//
// Sums of the table's gradient are a slot's own and added in the order of the slots, those of the queries' gradient in
// the order of the groups, so the bits of the result depend on the number of slots alone.
#include "parallel.h"
#include "spectral.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

using namespace spectral;

static void write_outputs(const Run& run, const Task& task, float* outputs) {
  const Plan& plan = run.plan;
  for (int64_t head = 0; head < plan.p.heads; head++)
    copy(channels_of(run.call.out, task, head, 0), {outputs + head * kPoint, plan.heads * kPoint, 1}, plan.positions,
         task.count);
}

static void write_values(const Run& run, const Task& task, float* sums) {
  const Plan& plan = run.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++)
    copy(channels_of(run.call.grad_value, task, depth, 0), {sums + depth * plan.positions * kPoint, kPoint, 1},
         plan.positions, task.count);
}

// Adds what the parts of k made of a group of channels, in their order, and writes it.
static void join_parts(int64_t group, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const int64_t size = run.backward ? plan.values_size() : plan.outputs_size();
  const Task task(plan, group * plan.parts);
  float* sum = run.shared.sums + task.number * size;
  for (int64_t part = 1; part < plan.parts; part++) add(sum, sum + part * size, size);
  run.backward ? write_values(run, task, sum) : write_outputs(run, task, sum);
}

static void task_forward(const Run& run, const Room& room, const Task& task) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  transform_values(run, room, task);
  pack_content(run, room, task);
  float* outputs = plan.parts == 1 ? room.outputs : run.shared.sums + task.number * plan.outputs_size();
  clear(outputs, plan.outputs_size());
  for (int64_t key = task.first_key; key < task.last_key; key++) {
    lambda_rows(run, room, key);
    const Vector content_r = load(room.content + key * kPoint), content_i = load(room.content + key * kPoint + kLanes);
    for (int64_t y = 0; y < p.rows; y++) {
      const float* lambda = lambda_row(run, room, y);
      for (int64_t x = 0; x < p.columns; x++, lambda += kPoint) {
        const int64_t position = y * p.columns + x;
        const Vector r = load(lambda) + content_r, i = load(lambda + kLanes) + content_i;
        for (int64_t head = 0; head < p.heads; head++) {
          const int64_t group = head / kGroupHeads * kGroupHeads;  // its first head
          const float factor =
              room.queries[(position * plan.heads + group) * p.dim_key + key * kGroupHeads + head % kGroupHeads];
          float* to = outputs + (position * plan.heads + head) * kPoint;
          store(to, load(to) + factor * r);
          store(to + kLanes, load(to + kLanes) + factor * i);
        }
      }
    }
  }
  if (plan.parts == 1) write_outputs(run, task, outputs);
}

static void slot_table(int64_t slot, void* context) { transform_tables(*static_cast<const Run*>(context), slot); }

static void slot_forward(int64_t slot, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Room room = run.room(slot);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) pack_queries(run, room, task.example);
    example = task.example;
    task_forward(run, room, task);
  }
}

// Of one row and k: adds dY·λ to the queries' gradient and returns dλ = Σ_h q·dY, scaled, in a buffer, zeros after the
// grid.
static float* row_backward(const Run& run, const Room& room, int64_t row, int64_t key, const float* lambda,
                           float* grad_queries) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  float* grad_lambda = lambda == room.buffer_a ? room.buffer_b : room.buffer_a;
  const Vector content_r = load(room.content + key * kPoint), content_i = load(room.content + key * kPoint + kLanes);
  Vector total_r = zero(), total_i = zero();
  for (int64_t x = 0; x < p.columns; x++) {
    const int64_t position = row * p.columns + x;
    const Vector r = load(lambda + x * kPoint) + content_r, i = load(lambda + x * kPoint + kLanes) + content_i;
    Vector sum_r = zero(), sum_i = zero();
    for (int64_t head = 0; head < plan.heads; head += kGroupHeads) {
      const float* grad = room.outputs + (position * plan.heads + head) * kPoint;
      const int64_t at = (position * plan.heads + head) * p.dim_key + key * kGroupHeads;
      Vector product[kGroupHeads];
#pragma GCC unroll 4
      for (int j = 0; j < kGroupHeads; j++) {
        const Vector grad_r = load(grad + j * kPoint), grad_i = load(grad + j * kPoint + kLanes);
        const float factor = room.queries[at + j];
        product[j] = grad_r * r + grad_i * i;
        sum_r += factor * grad_r, sum_i += factor * grad_i;
      }
      add_four(grad_queries + at, sums_of_four(product[0], product[1], product[2], product[3]));
    }
    store(grad_lambda + x * kPoint, plan.scale * sum_r);
    store(grad_lambda + x * kPoint + kLanes, plan.scale * sum_i);
    total_r += sum_r, total_i += sum_i;
  }
  clear(grad_lambda + p.columns * kPoint, (plan.width - p.columns) * kPoint);
  float* total = room.grad_content + key * kPoint;
  store(total, load(total) + total_r);
  store(total + kLanes, load(total + kLanes) + total_i);
  return grad_lambda;
}

// Adds to dV̂ and dT̂ what `count` frequencies of G from `first` on give.
static void multiply_backward(const Run& run, const Room& room, int64_t key, int64_t first, int64_t count,
                              const float* grad) {
  const Plan& plan = run.plan;
  for (int64_t depth = 0; depth < plan.p.intra_depth; depth++) {
    const int64_t pair_at = ((depth * plan.p.dim_key + key) * plan.points + first) * 2;
    const int64_t value_at = (depth * plan.points + first) * kPoint;
    const float *table = run.shared.table + pair_at, *values = room.values + value_at;
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
static void columns_backward(const Run& run, const Room& room, int64_t key) {
  const Plan& plan = run.plan;
  if (plan.height == 1) return multiply_backward(run, room, key, 0, plan.width, room.lambda);
  for (int64_t x = 0; x < plan.width; x++) {
    copy_points(room.buffer_a, 1, room.lambda + x * kPoint, plan.pitch, plan.p.rows);
    clear(room.buffer_a + plan.p.rows * kPoint, (plan.height - plan.p.rows) * kPoint);
    const float* grad = transform<false>(run.along_y, room.buffer_a, room.buffer_b);
    multiply_backward(run, room, key, x * plan.height, plan.height, grad);
  }
}

static void task_backward(const Run& run, const Room& room, const Task& task) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  float* grad_queries = run.shared.grad_queries + task.group * plan.queries_size();
  // Other parts write the other k of it.
  const int64_t keys = task.last_key - task.first_key;
  for (int64_t i = 0; i < plan.positions * plan.heads / kGroupHeads; i++)
    clear(grad_queries + (i * p.dim_key + task.first_key) * kGroupHeads, keys * kGroupHeads);
  clear(room.grad_content, p.dim_key * kPoint);
  clear(room.grad_values, p.intra_depth * plan.points * kPoint);
  transform_values(run, room, task);
  pack_content(run, room, task);
  clear(room.outputs, plan.outputs_size());
  for (int64_t head = 0; head < p.heads; head++)
    pack(room.outputs + head * kPoint, plan.heads * kPoint, kPoint, channels_of(run.call.out, task, head, 0),
         plan.positions, task.count);
  for (int64_t key = task.first_key; key < task.last_key; key++) {
    lambda_rows(run, room, key);
    for (int64_t y = 0; y < p.rows; y++) {
      float* grad = row_backward(run, room, y, key, lambda_row(run, room, y), grad_queries);
      float* other = grad == room.buffer_a ? room.buffer_b : room.buffer_a;
      const float* result = transform<false>(run.along_x, grad, other);
      copy_points(room.lambda + y * plan.pitch * kPoint, 1, result, 1, plan.width);
    }
    columns_backward(run, room, key);
  }
  // Its spectra are not needed any more.
  float* sums = plan.parts == 1 ? room.values : run.shared.sums + task.number * plan.values_size();
  for (int64_t depth = 0; depth < p.intra_depth; depth++) {
    for (int64_t x = 0; x < plan.width; x++) {
      copy_points(room.buffer_a, 1, room.grad_values + (depth * plan.points + x * plan.height) * kPoint, 1,
                  plan.height);
      const float* result = transform<true>(run.along_y, room.buffer_a, room.buffer_b);
      copy_points(room.lambda + x * kPoint, plan.pitch, result, 1, p.rows);
    }
    for (int64_t y = 0; y < p.rows; y++)
      copy_points(sums + (depth * plan.positions + y * p.columns) * kPoint, 1, lambda_row(run, room, y), 1, p.columns);
  }
  if (plan.parts == 1) write_values(run, task, sums);
  const Tensor& content = run.call.grad_content;
  if (content.data)
    copy({content.data + task.example * content.stride[0] + task.first_key * content.stride[1] +
              task.first * content.stride[2],
          content.stride[1], content.stride[2]},
         {room.grad_content + task.first_key * kPoint, kPoint, 1}, keys, task.count);
}

static void slot_backward(int64_t slot, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Room room = run.room(slot);
  clear(room.grad_table, plan.pairs * plan.points * 2);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) pack_queries(run, room, task.example);
    example = task.example;
    task_backward(run, room, task);
  }
}

// The table's gradient for kLanes pairs of u and k: F(dT̂) where the table has offsets.
static void table_gradient(const Run& run, int64_t item, const Room& room) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  const int64_t some = least(kLanes, plan.pairs - item * kLanes);
  for (int64_t x = 0; x < plan.width; x++) {
    clear(room.buffer_a, plan.height * kPoint);
    for (int64_t lane = 0; lane < some; lane++) {
      const int64_t at = ((item * kLanes + lane) * plan.points + x * plan.height) * 2;
      for (int64_t slot = 0; slot < plan.slots; slot++) {
        const float* from = run.room(slot).grad_table + at;
        for (int64_t y = 0; y < plan.height; y++) {
          room.buffer_a[y * kPoint + lane] += from[2 * y];
          room.buffer_a[y * kPoint + kLanes + lane] += from[2 * y + 1];
        }
      }
    }
    const float* result = transform<false>(run.along_y, room.buffer_a, room.buffer_b);
    for (int64_t y = 0; y < p.extent_rows; y++)
      copy_points(room.lambda + (y * plan.pitch + x) * kPoint, 1,
                  result + (y - p.origin_row + plan.height) % plan.height * kPoint, 1, 1);
  }
  const Tensor& table = run.call.grad_table;
  for (int64_t y = 0; y < p.extent_rows; y++) {
    copy_points(room.buffer_a, 1, room.lambda + y * plan.pitch * kPoint, 1, plan.width);
    const float* result = transform<false>(run.along_x, room.buffer_a, room.buffer_b);
    for (int64_t lane = 0; lane < some; lane++) {
      const int64_t pair = item * kLanes + lane;
      float* to = table.data + pair / p.dim_key * table.stride[0] + pair % p.dim_key * table.stride[1] +
                  y * table.stride[2];
      for (int64_t x = 0; x < p.extent_columns; x++)
        to[x * table.stride[3]] = result[(x - p.origin_column + plan.width) % plan.width * kPoint + lane];
    }
  }
}

// First the table's gradient, slot by slot, then the queries', example by example, then the values' where in parts.
static void finish_backward(int64_t item, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  if (item < plan.slots) {
    const Room room = run.room(item);
    const int64_t items = ceil_div(plan.pairs, kLanes);
    for (int64_t i = item * items / plan.slots; i < (item + 1) * items / plan.slots; i++)
      table_gradient(run, i, room);
    return;
  }
  if (item >= plan.slots + p.batch) return join_parts(item - plan.slots - p.batch, context);
  const int64_t example = item - plan.slots, size = plan.queries_size();
  float* sum = run.shared.grad_queries + example * plan.groups * size;
  for (int64_t group = 1; group < plan.groups; group++) add(sum, sum + group * size, size);
  for (int64_t head = 0; head < p.heads; head++)
    copy(matrix(run.call.grad_query, example, head, 0, 0), packed_head(plan, sum, head), plan.positions, p.dim_key);
}

int64_t scratch(const Problem& problem, int64_t slots, bool, bool backward) {
  const Plan plan(problem, slots);
  return Shared::size(plan, backward) + plan.slots * Room::size(plan, backward);
}

void forward(const KernelCall& call) {
  Run run(call, false);
  const int64_t slots = run.plan.slots;
  parallel(slots, slots, slot_table, &run);
  parallel(slots, slots, slot_forward, &run);
  if (run.plan.parts > 1) parallel(call.problem.batch * run.plan.groups, slots, join_parts, &run);
}

void backward(const KernelCall& call) {
  Run run(call, true);
  const int64_t slots = run.plan.slots;
  parallel(slots, slots, slot_table, &run);
  parallel(slots, slots, slot_backward, &run);
  const int64_t joined = run.plan.parts > 1 ? call.problem.batch * run.plan.groups : 0;
  parallel(slots + call.problem.batch + joined, slots, finish_backward, &run);
}

}  // namespace

extern const Kernel kSpectral;
const Kernel kSpectral{scratch, forward, backward};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
