// Whether numbers of a context differ so much in size that rounding errors which spread over it would show. The rule and
// its reason are in spread.py, which looks at other tensors by PyTorch's operations.
//
// Sizes are compared as the integers that their bits are: for numbers without a sign the order is the same, infinity is
// above all numbers and NaN above infinity, so that neither is missed. Running maxima stay integers, which compilers
// vectorise where a comparison of floats that keeps NaN would be a loop over single numbers.
#include "copies.h"
#include "parallel.h"
#include "sizes.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {
namespace {

// Channels that are looked at side by side, so that a tensor with channels innermost is read line by line.
constexpr int64_t kChannels = 16;
// Columns that are read at once.
constexpr int64_t kColumns = 256;
constexpr int32_t kInfinity = 0x7f800000;

INLINE int32_t bits_of(float size) {
  int32_t bits;
  std::memcpy(&bits, &size, sizeof bits);
  return bits & 0x7fffffff;
}

INLINE float size_of(int32_t bits) {
  float size;
  std::memcpy(&size, &bits, sizeof size);
  return size;
}

INLINE void raise(int32_t* most_of, int32_t bits) { *most_of = *most_of < bits ? bits : *most_of; }

// The larger of two sizes; NaN if one of them is.
INLINE float larger(float a, float b) {
  int32_t bits = bits_of(a);
  raise(&bits, bits_of(b));
  return size_of(bits);
}

struct Run {
  const SizesCall& call;
  const int64_t positions, planes, per_example, chunks;  // planes: of values, then of the gradient's channels
  Arena arena;
  float* queries;       // (example, position): the largest size of all heads and k
  int32_t* smallest;    // (example, plane, channel): the smallest of the blocks' largest sizes
  int32_t* largest;     // (example, plane, channel): the largest of them
  const int64_t room_size;

  explicit Run(const SizesCall& c)
      : call(c),
        positions(c.problem.rows * c.problem.columns),
        planes(c.problem.intra_depth + (c.grad.data ? 1 : 0)),
        per_example(planes * c.problem.dim_value),
        chunks(ceil_div(c.problem.dim_value, kChannels)),
        arena{c.scratch, 0},
        queries(arena.take(c.grad.data ? c.problem.batch * positions : 0)),
        smallest(reinterpret_cast<int32_t*>(arena.take(c.problem.batch * per_example))),
        largest(reinterpret_cast<int32_t*>(arena.take(c.problem.batch * per_example))),
        room_size(kChannels * (2 * kColumns + c.problem.columns)) {}
};

// Largest sizes of the queries of an example.
static void queries_of(int64_t example, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const Problem& p = run.call.problem;
  float* to = run.queries + example * run.positions;
  clear(to, run.positions);
  for (int64_t head = 0; head < p.heads; head++)
    for (int64_t key = 0; key < p.dim_key; key++) {
      const Matrix from = matrix(run.call.query, example, head, 0, key);
      for (int64_t n = 0; n < run.positions; n++) to[n] = larger(to[n], from.data[n * from.row]);
    }
}

// Some channels of a plane of an example.
struct Lines {
  const Run& run;
  int64_t example, plane, first, count;  // channels
  float *line, *sizes;                   // (channel, column): of one head's gradient, and the result

  // The sizes of `width` positions from `at` on into `sizes`; numbers whose sign does not count.
  void read(int64_t at, int64_t width) const {
    const Problem& p = run.call.problem;
    if (plane < p.intra_depth) {
      copy({sizes, width, 1}, transposed(matrix(run.call.value, example, plane, at, first)), count, width);
      return;
    }
    clear(sizes, count * width);
    for (int64_t head = 0; head < p.heads; head++) {
      copy({line, width, 1}, transposed(matrix(run.call.grad, example, head, at, first)), count, width);
      for (int64_t i = 0; i < count * width; i++) sizes[i] = larger(sizes[i], line[i]);
    }
    const float* queries = run.queries + example * run.positions + at;
    for (int64_t channel = 0; channel < count; channel++)
      for (int64_t x = 0; x < width; x++) sizes[channel * width + x] *= queries[x];
  }
};

// One chunk of channels of one plane of an example.
static void look_at(const Run& run, int64_t item, float* room) {
  const SizesCall& call = run.call;
  const Problem& p = call.problem;
  const int64_t example = item / (run.planes * run.chunks), plane = item / run.chunks % run.planes;
  const int64_t first = item % run.chunks * kChannels, count = least(kChannels, p.dim_value - first);
  const int64_t size = kChannels * kColumns;
  const Lines lines{run, example, plane, first, count, room, room + size};
  int32_t* tallest = reinterpret_cast<int32_t*>(room + 2 * size);  // (channel, column) of a row of blocks
  int32_t* smallest = run.smallest + example * run.per_example + plane * p.dim_value + first;
  int32_t* largest = run.largest + example * run.per_example + plane * p.dim_value + first;
  for (int64_t i = 0; i < count; i++) smallest[i] = INT32_MAX, largest[i] = 0;
  for (int64_t top = 0; top < p.rows; top += call.block_rows) {
    for (int64_t i = 0; i < count * p.columns; i++) tallest[i] = 0;
    for (int64_t y = top; y < least(top + call.block_rows, p.rows); y++)
      for (int64_t x = 0; x < p.columns; x += kColumns) {
        const int64_t width = least(kColumns, p.columns - x);
        lines.read(y * p.columns + x, width);
        for (int64_t i = 0; i < count; i++)
          for (int64_t j = 0; j < width; j++) raise(tallest + i * p.columns + x + j, bits_of(lines.sizes[i * width + j]));
      }
    for (int64_t i = 0; i < count; i++)
      for (int64_t left = 0; left < p.columns; left += call.block_columns) {
        int32_t block = 0;
        for (int64_t x = left; x < least(left + call.block_columns, p.columns); x++)
          raise(&block, tallest[i * p.columns + x]);
        smallest[i] = smallest[i] < block ? smallest[i] : block;
        raise(largest + i, block);
      }
  }
}

static void slot_of(int64_t slot, void* context) {
  const Run& run = *static_cast<const Run*>(context);
  const int64_t items = run.call.problem.batch * run.planes * run.chunks, slots = run.call.slots;
  float* room = run.call.scratch + run.arena.used + slot * run.room_size;
  for (int64_t item = slot * items / slots; item < (slot + 1) * items / slots; item++) look_at(run, item, room);
}

int64_t scratch(const Problem& problem, int64_t slots, bool backward) {
  SizesCall call{};
  float any;
  call.problem = problem;
  call.grad.data = backward ? &any : nullptr;
  const Run run(call);
  return run.arena.used + slots * run.room_size;
}

bool differ(const SizesCall& call) {
  Run run(call);
  const Problem& p = call.problem;
  if (call.grad.data) parallel(p.batch, call.slots, queries_of, &run);
  parallel(call.slots, call.slots, slot_of, &run);
  for (int64_t plane = 0; plane < p.batch * run.planes; plane++) {
    const int32_t *smallest = run.smallest + plane * p.dim_value, *largest = run.largest + plane * p.dim_value;
    int32_t of_all = 0;
    for (int64_t i = 0; i < p.dim_value; i++) raise(&of_all, largest[i]);
    if (of_all >= kInfinity) return true;
    for (int64_t i = 0; i < p.dim_value; i++)
      if (!(size_of(smallest[i]) * call.ratio >= size_of(call.mixes_channels ? of_all : largest[i]))) return true;
  }
  return false;
}

}  // namespace

extern const Sizes kSizes;
const Sizes kSizes{scratch, differ};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
