// Query first, fused: S = q·E for one query, a group of heads and a chunk of the context, then y += S·V at once.
//
// E is never built. The scores of a query with a row of the context are a correlation with a row of the table, read
// from where the query stands: S[r, x'] = Σ_k q[r, k] · R[k, Δy, x' - x + origin]. Backward makes S again and adds
//
//     dS = dY·Vᵀ,   dq += dS·R,   dR[Δ] += dSᵀ·q,   dV += Sᵀ·dY.
//
//     group  up to kGroupHeads heads of one query, which go through together
//     block  neighbouring queries of one row of the grid
//     task   a block of one example
//     chunk  a rectangle of context positions whose values fit the nearest cache, visited by all queries of a block
//     piece  a chunk's positions in one row of the grid; the whole chunk where its rows follow each other (tiles.h)
//     slot   tasks that follow each other, with packed values and sums of gradients of their own; slots run in parallel
//     pitch  floats from one head, position or depth of a packed tensor to the next
//
// Sums of slots are added in their order, so the bits of the result depend on the number of slots alone.
#include "parallel.h"
#include "query_first.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

using namespace query_first;

// The pieces of a chunk among things that follow each other by position, `each` floats for one.
INLINE Pieces by_position(const Plan& plan, const Seen& seen, int64_t each) {
  if (seen.whole_rows) return {1, seen.rows * seen.columns, 0};
  return {seen.rows, seen.columns, plan.p.columns * each};
}

template <int R>
INLINE void make_scores(const Plan& plan, const Shared& shared, const Room& room, const Seen& seen, int64_t at) {
  const Problem& p = plan.p;
  const float* table = shared.table + seen.depth * p.dim_key * plan.table_pitch;
  Pieces pieces{seen.rows, seen.columns, p.extent_columns};
  if (seen.columns == p.extent_columns) pieces = {1, seen.rows * seen.columns, 0};
  correlate<R>(room.queries + at * plan.key_pitch, plan.key_pitch, p.dim_key,
               table + seen.table_row * p.extent_columns + seen.table_column, plan.table_pitch, pieces, room.scores,
               plan.scores_pitch);
}

// `at` counts heads of the block's queries, those that fill up groups included: the first of the group.
template <int R>
static void chunk_forward(const Run& run, const Room& room, const Seen& seen, int64_t at) {
  const Plan& plan = run.plan;
  make_scores<R>(plan, run.shared, room, seen, at);
  gather<R>(room.scores, plan.scores_pitch,
            room.values + (seen.depth * plan.positions + seen.context) * plan.value_pitch, plan.value_pitch,
            by_position(plan, seen, plan.value_pitch), room.outputs + at * plan.value_pitch, plan.value_pitch);
}

template <int R>
static void chunk_backward(const Run& run, const Room& room, const Seen& seen, int64_t at, float* sums) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  make_scores<R>(plan, run.shared, room, seen, at);
  correlate<R>(room.grads + at * plan.value_pitch, plan.value_pitch, p.dim_value,
               room.values + seen.depth * p.dim_value * plan.context_pitch + seen.context, plan.context_pitch,
               by_position(plan, seen, 1), room.grad_scores, plan.scores_pitch);
  spread<R>(room.scores, plan.scores_pitch, room.grads + at * plan.value_pitch, plan.value_pitch,
            by_position(plan, seen, plan.value_pitch),
            sums + (seen.depth * plan.positions + seen.context) * plan.value_pitch);
  const int64_t place = (seen.depth * p.extent_rows + seen.table_row) * p.extent_columns + seen.table_column;
  const Pieces pieces{seen.rows, seen.columns, p.extent_columns * plan.key_pitch};
  gather<R>(room.grad_scores, plan.scores_pitch, run.shared.table_by_place + place * plan.key_pitch, plan.key_pitch,
            pieces, room.grad_queries + at * plan.key_pitch, plan.key_pitch);
  spread<R>(room.grad_scores, plan.scores_pitch, room.queries + at * plan.key_pitch, plan.key_pitch, pieces,
            room.grad_table + place * plan.key_pitch);
}

INLINE Matrix content_of(const Tensor& content, int64_t example) {
  return {content.data + example * content.stride[0], content.stride[1], content.stride[2]};
}

// The block's part of a (b, h, n, depth) tensor, for one head.
INLINE Matrix block_of(const Plan& plan, const Task& task, const Tensor& tensor, int64_t head) {
  return matrix(tensor, task.example, head, task.row * plan.p.columns + task.first, 0);
}

// (query, head, depth), `pitch` floats from one head to the next.
static void pack_by_head(const Plan& plan, const Task& task, const Tensor& tensor, int64_t depth, int64_t pitch,
                         float* to) {
  for (int64_t head = 0; head < plan.p.heads; head++)
    pack(to + head * pitch, plan.heads * pitch, pitch, block_of(plan, task, tensor, head), task.count, depth);
}

static void unpack_by_head(const Plan& plan, const Task& task, const Tensor& tensor, int64_t depth, int64_t pitch,
                           float* from) {
  for (int64_t head = 0; head < plan.p.heads; head++)
    copy(block_of(plan, task, tensor, head), {from + head * pitch, plan.heads * pitch, 1}, task.count, depth);
}

// Calls body(heads, at) for each group of a query of the block: heads.value is the number of heads, known when this is
// compiled, and `at` counts heads as in chunk_forward.
template <class Body>
INLINE void for_each_group(const Plan& plan, int64_t query, Body body) {
  for (int64_t group = 0; group < plan.groups; group++) {
    const int64_t at = (query * plan.groups + group) * kGroupHeads;
    switch (least(kGroupHeads, plan.p.heads - group * kGroupHeads)) {
      case 1: body(std::integral_constant<int, 1>{}, at); break;
      case 2: body(std::integral_constant<int, 2>{}, at); break;
      case 3: body(std::integral_constant<int, 3>{}, at); break;
      default: body(std::integral_constant<int, 4>{}, at); break;
    }
  }
}

static void pack_table(int64_t item, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Problem& p = run.plan.p;
  const Tensor& table = run.call.table;
  const int64_t depth = item / p.extent_rows, row = item % p.extent_rows;
  float* from = table.data + depth * table.stride[0] + row * table.stride[2];
  const Matrix by_depth{from, table.stride[1], table.stride[3]};
  copy({run.shared.table + depth * p.dim_key * run.plan.table_pitch + row * p.extent_columns, run.plan.table_pitch, 1},
       by_depth, p.dim_key, p.extent_columns);
  if (run.backward)
    pack(run.shared.table_by_place + item * p.extent_columns * run.plan.key_pitch, run.plan.key_pitch,
         run.plan.key_pitch, transposed(by_depth), p.extent_columns, p.dim_key);
}

// y = q·λc of a block, or 0.
static void content_forward(const Plan& plan, const Room& room, const Task& task) {
  if (!room.content) return clear(room.outputs, task.count * plan.heads * plan.value_pitch);
  for (int64_t i = 0; i < task.count; i++)
    for_each_group(plan, i, [&](auto heads, int64_t at) {
      correlate<heads.value>(room.queries + at * plan.key_pitch, plan.key_pitch, plan.p.dim_key, room.content,
                             plan.value_pitch, {1, plan.value_pitch, 0}, room.outputs + at * plan.value_pitch,
                             plan.value_pitch);
    });
}

// dq = dY·λcᵀ of a block, or 0, and dλc += qᵀ·dY.
static void content_backward(const Plan& plan, const Room& room, const Task& task, float* content_sums) {
  if (!room.content) return clear(room.grad_queries, task.count * plan.heads * plan.key_pitch);
  for (int64_t i = 0; i < task.count; i++)
    for_each_group(plan, i, [&](auto heads, int64_t at) {
      const float *query = room.queries + at * plan.key_pitch, *grad = room.grads + at * plan.value_pitch;
      correlate<heads.value>(grad, plan.value_pitch, plan.p.dim_value, room.content, plan.key_pitch,
                             {1, plan.key_pitch, 0}, room.grad_queries + at * plan.key_pitch, plan.key_pitch);
      spread<heads.value>(query, plan.key_pitch, grad, plan.value_pitch, {1, plan.p.dim_key, 0}, content_sums);
    });
}

static void task_forward(const Run& run, const Room& room, const Task& task) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  pack_by_head(plan, task, run.call.query, p.dim_key, plan.key_pitch, room.queries);
  content_forward(plan, room, task);
  for_each_seen(plan, task, [&](int64_t i, const Seen& seen) {
    for_each_group(plan, i, [&](auto heads, int64_t at) { chunk_forward<heads.value>(run, room, seen, at); });
  });
  unpack_by_head(plan, task, run.call.out, p.dim_value, plan.value_pitch, room.outputs);
}

static void slot_forward(int64_t slot, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  const Room room = run.room(slot);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) {
      example = task.example;
      for (int64_t depth = 0; depth < p.intra_depth; depth++)
        pack(room.values + depth * plan.positions * plan.value_pitch, plan.value_pitch, plan.value_pitch,
             matrix(run.call.value, example, depth, 0, 0), plan.positions, p.dim_value);
      if (room.content)
        pack(room.content, plan.value_pitch, plan.value_pitch, content_of(run.call.content, example), p.dim_key,
             p.dim_value);
    }
    task_forward(run, room, task);
  }
}

static void task_backward(const Run& run, const Room& room, const Task& task, float* sums) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  pack_by_head(plan, task, run.call.query, p.dim_key, plan.key_pitch, room.queries);
  pack_by_head(plan, task, run.call.out, p.dim_value, plan.value_pitch, room.grads);
  content_backward(plan, room, task, sums + p.intra_depth * plan.positions * plan.value_pitch);
  for_each_seen(plan, task, [&](int64_t i, const Seen& seen) {
    for_each_group(plan, i, [&](auto heads, int64_t at) { chunk_backward<heads.value>(run, room, seen, at, sums); });
  });
  unpack_by_head(plan, task, run.call.grad_query, p.dim_key, plan.key_pitch, room.grad_queries);
}

// Positions [first, last) of an example's sums, in (u, n), and the content's if `content`, to where they belong.
static void write_sums(const Run& run, int64_t example, const float* sums, int64_t first, int64_t last, bool content) {
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  float* from = const_cast<float*>(sums);
  for (int64_t at = first; at < last;) {
    const int64_t depth = at / plan.positions, place = at % plan.positions;
    const int64_t count = least(last - at, plan.positions - place);
    copy(matrix(run.call.grad_value, example, depth, place, 0), {from + at * plan.value_pitch, plan.value_pitch, 1},
         count, p.dim_value);
    at += count;
  }
  if (content && run.call.grad_content.data)
    copy(content_of(run.call.grad_content, example),
         {from + p.intra_depth * plan.positions * plan.value_pitch, plan.value_pitch, 1}, p.dim_key, p.dim_value);
}

static void slot_backward(int64_t slot, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  const Room room = run.room(slot);
  clear(room.grad_table, plan.table_sums_size());
  const int64_t last = plan.first_task(slot + 1);
  for (int64_t number = plan.first_task(slot); number < last;) {
    const int64_t example = number / plan.tasks_each, stop = least(last, (example + 1) * plan.tasks_each);
    float* sums = sums_of(plan, room, slot, example);
    clear(sums, plan.sums_size());
    for (int64_t depth = 0; depth < p.intra_depth; depth++)
      pack(room.values + depth * p.dim_value * plan.context_pitch, plan.context_pitch, plan.context_pitch,
           transposed(matrix(run.call.value, example, depth, 0, 0)), p.dim_value, plan.positions);
    if (room.content)
      pack(room.content, plan.key_pitch, plan.key_pitch, transposed(content_of(run.call.content, example)),
           p.dim_value, p.dim_key);
    for (; number < stop; number++) task_backward(run, room, Task(plan, number), sums);
    if (plan.has_whole(slot, example)) write_sums(run, example, sums, 0, p.intra_depth * plan.positions, true);
  }
}

// Adds the sums of slots in their order: of the table's rows, and of parts of the examples that several slots have.
// Parts run at the same time, so each reads and writes its positions alone; the first one has the content's sums too.
static void reduce(int64_t item, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Plan& plan = run.plan;
  const Problem& p = plan.p;
  const int64_t table_rows = p.intra_depth * p.extent_rows;
  if (item < table_rows) {
    const int64_t size = p.extent_columns * plan.key_pitch, depth = item / p.extent_rows, row = item % p.extent_rows;
    float* sum = run.room(0).grad_table + item * size;
    for (int64_t slot = 1; slot < plan.slots; slot++) add(sum, run.room(slot).grad_table + item * size, size);
    const Tensor& table = run.call.grad_table;
    copy({table.data + depth * table.stride[0] + row * table.stride[2], table.stride[3], table.stride[1]},
         {sum, plan.key_pitch, 1}, p.extent_columns, p.dim_key);
    return;
  }
  const int64_t example = (item - table_rows) / plan.slots, part = (item - table_rows) % plan.slots;
  const int64_t all = p.intra_depth * plan.positions;
  const int64_t first = part * all / plan.slots, last = (part + 1) * all / plan.slots;
  const bool content = part == 0;
  if (first == last && !content) return;  // more slots than positions
  float* sum = nullptr;
  for (int64_t slot = 0; slot < plan.slots; slot++) {
    if (plan.has_whole(slot, example)) return;
    if (!plan.has_some(slot, example)) continue;
    float* sums = sums_of(plan, run.room(slot), slot, example);
    if (!sum) {
      sum = sums;
      continue;
    }
    add(sum + first * plan.value_pitch, sums + first * plan.value_pitch, (last - first) * plan.value_pitch);
    if (content)
      add(sum + all * plan.value_pitch, sums + all * plan.value_pitch, p.dim_key * plan.value_pitch);
  }
  write_sums(run, example, sum, first, last, content);
}

int64_t scratch(const Problem& problem, int64_t slots, bool has_content, bool backward) {
  const Plan plan(problem, slots);
  return Shared::size(plan, backward) + plan.slots * Room::size(plan, has_content, backward);
}

void forward(const KernelCall& call) {
  Run run(call, false);
  const int64_t slots = run.plan.slots, table_rows = call.problem.intra_depth * call.problem.extent_rows;
  parallel(table_rows, slots, pack_table, &run);
  parallel(slots, slots, slot_forward, &run);
}

void backward(const KernelCall& call) {
  Run run(call, true);
  const int64_t slots = run.plan.slots, table_rows = call.problem.intra_depth * call.problem.extent_rows;
  parallel(table_rows, slots, pack_table, &run);
  parallel(slots, slots, slot_backward, &run);
  parallel(table_rows + call.problem.batch * slots, slots, reduce, &run);
}

}  // namespace

extern const Kernel kQueryFirst;
const Kernel kQueryFirst{scratch, forward, backward};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
