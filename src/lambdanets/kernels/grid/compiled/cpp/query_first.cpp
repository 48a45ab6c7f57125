// Query first, fused: S = q·E for one query, a group of heads and a chunk of the context, then y += S·V at once.
//
// E is never built. The scores of a query with a row of the context are a correlation with a row of the table, read from
// where the query stands: S[r, x'] = Σ_k q[r, k] · R[Δy, k, x' - x + origin]. Backward makes S again and adds
//
//     dS = dY·Vᵀ,   dq += dS·R,   dR[Δ] += dSᵀ·q,   dV += Sᵀ·dY.
//
// A task is a block of queries of one row y of one example; it visits chunks of the context that fit the nearest cache.
// A slot does some tasks that follow each other, with packed values and sums of gradients of its own; sums of slots are
// added in their order. So the bits depend on the number of slots alone.
#include "copies.h"
#include "tiles.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

// Floats of values and of outputs that are to stay in the nearest cache.
constexpr int64_t kChunkFloats = 4096, kBlockFloats = 4096;
constexpr int64_t kLeastChunk = 32, kMostChunk = 256;

struct Plan {
  Problem p;
  int64_t groups, positions, key_pitch, value_pitch;  // padded depths
  int64_t table_pitch, table_size, scores_pitch, context_pitch;
  int64_t block, blocks, chunk, tasks_each, tasks, slots;

  Plan(const Problem& problem, int64_t slots_wanted) : p(problem) {
    groups = ceil_div(p.heads, kRows);
    positions = p.rows * p.columns;
    key_pitch = padded(p.dim_key);
    value_pitch = padded(p.dim_value);
    table_pitch = apart(p.extent_columns);
    table_size = p.intra_depth * p.extent_rows * p.dim_key * table_pitch + kLanes;
    context_pitch = apart(positions);
    chunk = least(most(kChunkFloats / value_pitch, kLeastChunk), kMostChunk);
    scores_pitch = padded(most(chunk, p.columns < chunk ? chunk / p.columns * p.columns : chunk)) + kLanes;
    blocks = ceil_div(p.columns, most(kBlockFloats / (groups * kRows * value_pitch), 4));
    block = ceil_div(p.columns, blocks);
    blocks = ceil_div(p.columns, block);
    tasks_each = p.rows * blocks;
    tasks = p.batch * tasks_each;
    slots = most(1, least(slots_wanted, tasks));
  }

  // A row length by which rows do not fall onto the same lines of a cache.
  static int64_t apart(int64_t length) { return length % 64 == 0 ? length + 16 : length; }

  int64_t first_task(int64_t slot) const { return slot * tasks / slots; }
  // True if a slot has some, or all, of an example's tasks.
  bool has_some(int64_t slot, int64_t example) const {
    return first_task(slot) < (example + 1) * tasks_each && example * tasks_each < first_task(slot + 1);
  }
  bool has_whole(int64_t slot, int64_t example) const {
    return first_task(slot) <= example * tasks_each && (example + 1) * tasks_each <= first_task(slot + 1);
  }
  int64_t sums_size() const { return p.intra_depth * positions * value_pitch + p.dim_key * value_pitch; }
  int64_t table_sums_size() const { return p.intra_depth * p.extent_rows * p.extent_columns * key_pitch; }
};

// Memory of a call.
struct Shared {
  float *table, *table_by_place;

  Shared(Arena& arena, const Plan& plan, bool backward) {
    table = arena.take(plan.table_size);
    table_by_place = backward ? arena.take(plan.table_sums_size()) : nullptr;
  }
};

// Memory of a slot.
struct Room {
  float *values, *content, *queries, *query_rows, *rows, *scores;
  float *grads, *grad_rows, *grad_queries, *grad_scores, *grad_table, *head_sums, *tail_sums;

  Room(Arena& arena, const Plan& plan, bool has_content, bool backward) {
    const Problem& p = plan.p;
    const int64_t heads = plan.groups * kRows, each = plan.block * heads;
    queries = arena.take(each * p.dim_key);
    query_rows = arena.take(each * plan.key_pitch);
    scores = arena.take(kRows * plan.scores_pitch);
    if (!backward) {
      values = arena.take(p.intra_depth * plan.positions * plan.value_pitch);
      content = has_content ? arena.take(p.dim_key * plan.value_pitch) : nullptr;
      rows = arena.take(each * plan.value_pitch);
      return;
    }
    values = arena.take(p.intra_depth * p.dim_value * plan.context_pitch + kLanes);
    content = has_content ? arena.take(p.dim_value * plan.key_pitch) : nullptr;
    grads = arena.take(each * p.dim_value);
    grad_rows = arena.take(each * plan.value_pitch);
    grad_queries = arena.take(each * plan.key_pitch);
    grad_scores = arena.take(kRows * plan.scores_pitch);
    grad_table = arena.take(plan.table_sums_size());
    head_sums = arena.take(plan.sums_size());
    tail_sums = arena.take(plan.sums_size());
  }
};

// Where a slot sums an example's gradients. They stay there where others have parts of the example, which only the first
// and the last of a slot can be.
INLINE float* sums_of(const Plan& plan, const Room& room, int64_t slot, int64_t example) {
  return example == plan.first_task(slot) / plan.tasks_each ? room.head_sums : room.tail_sums;
}

struct Work {
  const Call& call;
  const Plan plan;
  const bool backward;
  Shared shared;
  int64_t shared_size, room_size;

  Work(const Call& c, bool is_backward)
      : call(c), plan(c.problem, c.slots), backward(is_backward), shared(first_arena(c, is_backward)) {
    Arena arena{c.scratch, 0};
    Shared(arena, plan, backward);
    shared_size = arena.used;
    arena = {c.scratch, 0};
    room(arena);
    room_size = arena.used;
  }

  Shared first_arena(const Call& c, bool is_backward) const {
    Arena arena{c.scratch, 0};
    return Shared(arena, plan, is_backward);
  }
  Room room(Arena& arena) const { return Room(arena, plan, call.content.data != nullptr, backward); }
  Room room(int64_t slot) const {
    Arena arena{call.scratch + shared_size + slot * room_size, 0};
    return room(arena);
  }
};

// A block of queries.
struct Task {
  int64_t example, row, first, count;

  Task(const Plan& plan, int64_t number) {
    example = number / plan.tasks_each;
    row = number % plan.tasks_each / plan.blocks;
    first = number % plan.blocks * plan.block;
    count = least(plan.block, plan.p.columns - first);
  }
};

// What one query sees of a chunk.
struct Seen {
  int64_t depth;          // which u
  int64_t rows, columns;  // how many
  int64_t context;        // position of the first
  int64_t table_row, table_column;
  bool whole_rows;  // the columns are all columns of the grid
};

// Calls visit(query's number in its block, Seen) for the chunks that a task's queries see, chunk after chunk.
template <class Visit>
INLINE void for_each_seen(const Plan& plan, const Task& task, Visit visit) {
  const Problem& p = plan.p;
  const int64_t top = most(0, task.row - p.origin_row);
  const int64_t bottom = least(p.rows, task.row - p.origin_row + p.extent_rows);
  const int64_t left = most(0, task.first - p.origin_column);
  const int64_t right = least(p.columns, task.first + task.count - 1 - p.origin_column + p.extent_columns);
  const int64_t width = least(right - left, plan.chunk), height = most(1, plan.chunk / most(1, width));
  for (int64_t depth = 0; depth < p.intra_depth; depth++)
    for (int64_t y = top; y < bottom; y += height)
      for (int64_t x = left; x < right; x += width)
        for (int64_t i = 0; i < task.count; i++) {
          const int64_t query = task.first + i;
          const int64_t from = most(x, query - p.origin_column);
          const int64_t to = least(least(x + width, right), query - p.origin_column + p.extent_columns);
          if (from >= to) continue;
          visit(i, Seen{depth, least(height, bottom - y), to - from, y * p.columns + from, y - task.row + p.origin_row,
                        from - query + p.origin_column, to - from == p.columns});
        }
}

// The pieces of a chunk among things that follow each other by position, `each` floats for one.
INLINE Pieces by_position(const Plan& plan, const Seen& seen, int64_t each) {
  if (seen.whole_rows) return {1, seen.rows * seen.columns, 0};
  return {seen.rows, seen.columns, plan.p.columns * each};
}

template <int R>
INLINE void make_scores(const Plan& plan, const Shared& shared, const Room& room, const Seen& seen,
                        const float* queries) {
  const Problem& p = plan.p;
  const int64_t row = seen.depth * p.extent_rows + seen.table_row;
  correlate<R>(queries, p.dim_key, shared.table + row * p.dim_key * plan.table_pitch + seen.table_column,
               plan.table_pitch, {seen.rows, seen.columns, p.dim_key * plan.table_pitch}, room.scores,
               plan.scores_pitch);
}

template <int R>
static void chunk_forward(const Work& work, const Room& room, const Seen& seen, int64_t row) {
  const Plan& plan = work.plan;
  make_scores<R>(plan, work.shared, room, seen, room.queries + row * plan.p.dim_key);
  gather<R>(room.scores, plan.scores_pitch,
            room.values + (seen.depth * plan.positions + seen.context) * plan.value_pitch, plan.value_pitch,
            by_position(plan, seen, plan.value_pitch), room.rows + row * plan.value_pitch, plan.value_pitch);
}

template <int R>
static void chunk_backward(const Work& work, const Room& room, const Seen& seen, int64_t row, float* sums) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  make_scores<R>(plan, work.shared, room, seen, room.queries + row * p.dim_key);
  correlate<R>(room.grads + row * p.dim_value, p.dim_value,
               room.values + seen.depth * p.dim_value * plan.context_pitch + seen.context, plan.context_pitch,
               by_position(plan, seen, 1), room.grad_scores, plan.scores_pitch);
  spread<R>(room.scores, plan.scores_pitch, room.grad_rows + row * plan.value_pitch, plan.value_pitch,
            by_position(plan, seen, plan.value_pitch),
            sums + (seen.depth * plan.positions + seen.context) * plan.value_pitch);
  const int64_t place = (seen.depth * p.extent_rows + seen.table_row) * p.extent_columns + seen.table_column;
  const Pieces pieces{seen.rows, seen.columns, p.extent_columns * plan.key_pitch};
  gather<R>(room.grad_scores, plan.scores_pitch, work.shared.table_by_place + place * plan.key_pitch, plan.key_pitch,
            pieces, room.grad_queries + row * plan.key_pitch, plan.key_pitch);
  spread<R>(room.grad_scores, plan.scores_pitch, room.query_rows + row * plan.key_pitch, plan.key_pitch, pieces,
            room.grad_table + place * plan.key_pitch);
}

INLINE Matrix content_of(const Tensor& content, int64_t example) {
  return {content.data + example * content.stride[0], content.stride[1], content.stride[2]};
}

// The block's part of a (b, h, n, depth) tensor, for one head.
INLINE Matrix block_of(const Plan& plan, const Task& task, const Tensor& tensor, int64_t head) {
  return matrix(tensor, task.example, head, task.row * plan.p.columns + task.first, 0);
}

// A row of `pitch` floats for each query and head.
static void pack_rows(const Plan& plan, const Task& task, const Tensor& tensor, int64_t depth, int64_t pitch,
                      float* to) {
  for (int64_t head = 0; head < plan.p.heads; head++)
    pack(to + head * pitch, plan.groups * kRows * pitch, pitch, block_of(plan, task, tensor, head), task.count, depth);
}

static void unpack_rows(const Plan& plan, const Task& task, const Tensor& tensor, int64_t depth, int64_t pitch,
                        float* from) {
  for (int64_t head = 0; head < plan.p.heads; head++)
    copy(block_of(plan, task, tensor, head), {from + head * pitch, plan.groups * kRows * pitch, 1}, task.count, depth);
}

// The heads of a group side by side: (query, group, depth, head).
static void pack_groups(const Plan& plan, const Task& task, const Tensor& tensor, int64_t depth, float* to) {
  for (int64_t head = 0; head < plan.p.heads; head++)
    copy({to + head / kRows * depth * kRows + head % kRows, plan.groups * kRows * depth, kRows},
         block_of(plan, task, tensor, head), task.count, depth);
}

// Calls function<R>(arguments) for the group's number of heads.
#define FOR_GROUP(group, function, ...)                      \
  switch (least(kRows, plan.p.heads - (group) * kRows)) {    \
    case 1: function<1>(__VA_ARGS__); break;                 \
    case 2: function<2>(__VA_ARGS__); break;                 \
    case 3: function<3>(__VA_ARGS__); break;                 \
    default: function<4>(__VA_ARGS__); break;                \
  }

static void pack_table(int64_t item, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Problem& p = work.plan.p;
  const Tensor& table = work.call.table;
  const int64_t depth = item / p.extent_rows, row = item % p.extent_rows, pitch = work.plan.table_pitch;
  float* from = table.data + depth * table.stride[0] + row * table.stride[2];
  const Matrix by_depth{from, table.stride[1], table.stride[3]};
  pack(work.shared.table + item * p.dim_key * pitch, pitch, pitch, by_depth, p.dim_key, p.extent_columns);
  if (work.backward)
    pack(work.shared.table_by_place + item * p.extent_columns * work.plan.key_pitch, work.plan.key_pitch,
         work.plan.key_pitch, transposed(by_depth), p.extent_columns, p.dim_key);
}

static void task_forward(const Work& work, const Room& room, const Task& task) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  pack_groups(plan, task, work.call.query, p.dim_key, room.queries);
  clear(room.rows, task.count * plan.groups * kRows * plan.value_pitch);
  if (room.content) {
    pack_rows(plan, task, work.call.query, p.dim_key, plan.key_pitch, room.query_rows);
    for (int64_t i = 0; i < task.count; i++)
      for (int64_t group = 0; group < plan.groups; group++) {
        const int64_t row = (i * plan.groups + group) * kRows;
        FOR_GROUP(group, gather, room.query_rows + row * plan.key_pitch, plan.key_pitch, room.content,
                  plan.value_pitch, Pieces{1, p.dim_key, 0}, room.rows + row * plan.value_pitch, plan.value_pitch)
      }
  }
  for_each_seen(plan, task, [&](int64_t i, const Seen& seen) {
    for (int64_t group = 0; group < plan.groups; group++)
      FOR_GROUP(group, chunk_forward, work, room, seen, (i * plan.groups + group) * kRows)
  });
  unpack_rows(plan, task, work.call.out, p.dim_value, plan.value_pitch, room.rows);
}

static void slot_forward(int64_t slot, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  const Room room = work.room(slot);
  int64_t example = -1;
  for (int64_t number = plan.first_task(slot); number < plan.first_task(slot + 1); number++) {
    const Task task(plan, number);
    if (task.example != example) {
      example = task.example;
      for (int64_t depth = 0; depth < p.intra_depth; depth++)
        pack(room.values + depth * plan.positions * plan.value_pitch, plan.value_pitch, plan.value_pitch,
             matrix(work.call.value, example, depth, 0, 0), plan.positions, p.dim_value);
      if (room.content)
        pack(room.content, plan.value_pitch, plan.value_pitch, content_of(work.call.content, example), p.dim_key,
             p.dim_value);
    }
    task_forward(work, room, task);
  }
}

static void task_backward(const Work& work, const Room& room, const Task& task, float* sums) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  pack_groups(plan, task, work.call.query, p.dim_key, room.queries);
  pack_groups(plan, task, work.call.out, p.dim_value, room.grads);
  pack_rows(plan, task, work.call.query, p.dim_key, plan.key_pitch, room.query_rows);
  pack_rows(plan, task, work.call.out, p.dim_value, plan.value_pitch, room.grad_rows);
  clear(room.grad_queries, task.count * plan.groups * kRows * plan.key_pitch);
  if (room.content) {
    float* content_sums = sums + p.intra_depth * plan.positions * plan.value_pitch;
    for (int64_t i = 0; i < task.count; i++)
      for (int64_t group = 0; group < plan.groups; group++) {
        const int64_t row = (i * plan.groups + group) * kRows;
        const float *query = room.query_rows + row * plan.key_pitch, *grad = room.grad_rows + row * plan.value_pitch;
        FOR_GROUP(group, gather, grad, plan.value_pitch, room.content, plan.key_pitch, Pieces{1, p.dim_value, 0},
                  room.grad_queries + row * plan.key_pitch, plan.key_pitch)
        FOR_GROUP(group, spread, query, plan.key_pitch, grad, plan.value_pitch, Pieces{1, p.dim_key, 0}, content_sums)
      }
  }
  for_each_seen(plan, task, [&](int64_t i, const Seen& seen) {
    for (int64_t group = 0; group < plan.groups; group++)
      FOR_GROUP(group, chunk_backward, work, room, seen, (i * plan.groups + group) * kRows, sums)
  });
  unpack_rows(plan, task, work.call.grad_query, p.dim_key, plan.key_pitch, room.grad_queries);
}

// Positions [first, last) of an example's sums, in (u, n), to where they belong; and the content's where `first` is 0.
static void write_sums(const Work& work, int64_t example, const float* sums, int64_t first, int64_t last) {
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  float* from = const_cast<float*>(sums);
  for (int64_t at = first; at < last;) {
    const int64_t depth = at / plan.positions, place = at % plan.positions;
    const int64_t count = least(last - at, plan.positions - place);
    copy(matrix(work.call.grad_value, example, depth, place, 0), {from + at * plan.value_pitch, plan.value_pitch, 1},
         count, p.dim_value);
    at += count;
  }
  if (first == 0 && work.call.grad_content.data)
    copy(content_of(work.call.grad_content, example),
         {from + p.intra_depth * plan.positions * plan.value_pitch, plan.value_pitch, 1}, p.dim_key, p.dim_value);
}

static void slot_backward(int64_t slot, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  const Room room = work.room(slot);
  clear(room.grad_table, plan.table_sums_size());
  const int64_t last = plan.first_task(slot + 1);
  for (int64_t number = plan.first_task(slot); number < last;) {
    const int64_t example = number / plan.tasks_each, stop = least(last, (example + 1) * plan.tasks_each);
    float* sums = sums_of(plan, room, slot, example);
    clear(sums, plan.sums_size());
    for (int64_t depth = 0; depth < p.intra_depth; depth++)
      pack(room.values + depth * p.dim_value * plan.context_pitch, plan.context_pitch, plan.context_pitch,
           transposed(matrix(work.call.value, example, depth, 0, 0)), p.dim_value, plan.positions);
    if (room.content)
      pack(room.content, plan.key_pitch, plan.key_pitch, transposed(content_of(work.call.content, example)),
           p.dim_value, p.dim_key);
    for (; number < stop; number++) task_backward(work, room, Task(plan, number), sums);
    if (plan.has_whole(slot, example)) write_sums(work, example, sums, 0, p.intra_depth * plan.positions);
  }
}

// Adds the sums of slots in their order: of the table's rows, and of parts of the examples that several slots have.
static void reduce(int64_t item, void* context) {
  const Work& work = *static_cast<const Work*>(context);
  const Plan& plan = work.plan;
  const Problem& p = plan.p;
  const int64_t table_rows = p.intra_depth * p.extent_rows;
  if (item < table_rows) {
    const int64_t size = p.extent_columns * plan.key_pitch, depth = item / p.extent_rows, row = item % p.extent_rows;
    float* sum = work.room(0).grad_table + item * size;
    for (int64_t slot = 1; slot < plan.slots; slot++) add(sum, work.room(slot).grad_table + item * size, size);
    const Tensor& table = work.call.grad_table;
    copy({table.data + depth * table.stride[0] + row * table.stride[2], table.stride[3], table.stride[1]},
         {sum, plan.key_pitch, 1}, p.extent_columns, p.dim_key);
    return;
  }
  const int64_t example = (item - table_rows) / plan.slots, part = (item - table_rows) % plan.slots;
  const int64_t all = p.intra_depth * plan.positions;
  const int64_t first = part * all / plan.slots, last = (part + 1) * all / plan.slots;
  float* sum = nullptr;
  for (int64_t slot = 0; slot < plan.slots; slot++) {
    if (plan.has_whole(slot, example)) return;
    if (!plan.has_some(slot, example)) continue;
    float* sums = sums_of(plan, work.room(slot), slot, example);
    if (!sum) {
      sum = sums;
      continue;
    }
    add(sum + first * plan.value_pitch, sums + first * plan.value_pitch, (last - first) * plan.value_pitch);
    if (part == 0)
      add(sum + all * plan.value_pitch, sums + all * plan.value_pitch, p.dim_key * plan.value_pitch);
  }
  if (first < last || part == 0) write_sums(work, example, sum, first, last);
}

int64_t scratch(const Problem& problem, int64_t slots, bool has_content, bool backward) {
  const Plan plan(problem, slots);
  Arena shared{nullptr, 0}, each{nullptr, 0};
  Shared(shared, plan, backward);
  Room(each, plan, has_content, backward);
  return shared.used + plan.slots * each.used;
}

void forward(const Call& call) {
  Work work(call, false);
  parallel(call.problem.intra_depth * call.problem.extent_rows, pack_table, &work);
  parallel(work.plan.slots, slot_forward, &work);
}

void backward(const Call& call) {
  Work work(call, true);
  const int64_t table_rows = call.problem.intra_depth * call.problem.extent_rows;
  parallel(table_rows, pack_table, &work);
  parallel(work.plan.slots, slot_backward, &work);
  parallel(table_rows + call.problem.batch * work.plan.slots, reduce, &work);
}

}  // namespace

extern const Kernel kQueryFirst;
const Kernel kQueryFirst{scratch, forward, backward};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
