// Plan and memory of query first, and what its queries see of the context. query_first.cpp says what its words mean.
#pragma once

#include "copies.h"
#include "tiles.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace query_first {

// Floats of values and of outputs that are to stay in the nearest cache.
constexpr int64_t kChunkFloats = 4096, kBlockFloats = 4096;
constexpr int64_t kLeastChunk = 64, kMostChunk = 256;

struct Plan {
  Problem p;
  int64_t groups, heads, positions;  // heads: those of whole groups; positions of the grid
  int64_t key_pitch, value_pitch;    // padded depths
  int64_t table_pitch, table_size, scores_pitch, context_pitch;
  int64_t block, blocks, chunk;      // queries of a block, blocks of a row of the grid, most positions of a chunk
  int64_t tasks_each, tasks, slots;  // tasks_each: of an example

  Plan(const Problem& problem, int64_t slots_wanted) : p(problem) {
    groups = ceil_div(p.heads, kGroupHeads);
    heads = groups * kGroupHeads;
    positions = p.rows * p.columns;
    key_pitch = padded(p.dim_key);
    value_pitch = padded(p.dim_value);
    table_pitch = apart(p.extent_rows * p.extent_columns);
    table_size = p.intra_depth * p.dim_key * table_pitch + kLanes;
    context_pitch = apart(positions);
    chunk = least(most(kChunkFloats / value_pitch, kLeastChunk), kMostChunk);
    scores_pitch = padded(chunk) + kLanes;
    blocks = ceil_div(p.columns, most(kBlockFloats / (heads * value_pitch), 4));
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

// Scratch memory of a call.
struct Shared {
  float* table;           // (u, k, row, column)
  float* table_by_place;  // (u, row, column, k)

  Shared(Arena& arena, const Plan& plan, bool backward) {
    table = arena.take(plan.table_size);
    table_by_place = backward ? arena.take(plan.table_sums_size()) : nullptr;
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
  float *queries, *outputs, *grads, *grad_queries;  // of a block, (query, head, depth)
  float *scores, *grad_scores;                      // of a chunk, (head, position)
  float *values, *content;                          // of an example; with the depth first in backward
  float *grad_table, *head_sums, *tail_sums;        // of the slot; the last two as sums_of says

  Room(Arena& arena, const Plan& plan, bool has_content, bool backward) {
    const Problem& p = plan.p;
    const int64_t each = plan.block * plan.heads;
    queries = arena.take(each * plan.key_pitch);
    scores = arena.take(kGroupHeads * plan.scores_pitch);
    if (!backward) {
      values = arena.take(p.intra_depth * plan.positions * plan.value_pitch);
      content = has_content ? arena.take(p.dim_key * plan.value_pitch) : nullptr;
      outputs = arena.take(each * plan.value_pitch);
      return;
    }
    values = arena.take(p.intra_depth * p.dim_value * plan.context_pitch + kLanes);
    content = has_content ? arena.take(p.dim_value * plan.key_pitch) : nullptr;
    grads = arena.take(each * plan.value_pitch);
    grad_queries = arena.take(each * plan.key_pitch);
    grad_scores = arena.take(kGroupHeads * plan.scores_pitch);
    grad_table = arena.take(plan.table_sums_size());
    head_sums = arena.take(plan.sums_size());
    tail_sums = arena.take(plan.sums_size());
  }

  // Number of floats that it takes.
  static int64_t size(const Plan& plan, bool has_content, bool backward) {
    Arena counter{nullptr, 0};
    Room(counter, plan, has_content, backward);
    return counter.used;
  }
};

// Where a slot sums the gradients of an example's values and content. They stay there where other slots have parts of
// the example, which only the first and the last example of a slot can be.
INLINE float* sums_of(const Plan& plan, const Room& room, int64_t slot, int64_t example) {
  return example == plan.first_task(slot) / plan.tasks_each ? room.head_sums : room.tail_sums;
}

// One call in progress: its plan and where its memory is.
struct Run {
  const KernelCall& call;
  const Plan plan;
  const bool has_content, backward;
  Arena arena;  // what the slots share, then a room for each of them
  const Shared shared;
  const int64_t room_size;

  Run(const KernelCall& c, bool is_backward)
      : call(c),
        plan(c.problem, c.slots),
        has_content(c.content.data != nullptr),
        backward(is_backward),
        arena{c.scratch, 0},
        shared(arena, plan, backward),
        room_size(Room::size(plan, has_content, backward)) {}

  Room room(int64_t slot) const {
    Arena each{call.scratch + arena.used + slot * room_size, 0};
    return Room(each, plan, has_content, backward);
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
  const int64_t width = most(1, least(right - left, plan.chunk));
  const int64_t most_rows = most(1, plan.chunk / least(width, p.extent_columns)), rows = most(1, bottom - top);
  const int64_t height = ceil_div(rows, ceil_div(rows, most_rows));
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

}  // namespace query_first
}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
