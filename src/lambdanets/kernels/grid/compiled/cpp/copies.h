// Matrices between tensors of any strides and the packed forms that the tiles take.
#pragma once

#include <cstring>

#include "simd.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {

typedef float Four __attribute__((vector_size(16)));
typedef float FourUnaligned __attribute__((vector_size(16), aligned(4), may_alias));

// 4 x 4 elements, transposed: rows of `from` are columns of `to`.
INLINE void transpose_four(const float* from, int64_t from_pitch, float* to, int64_t to_pitch) {
  const Four a = *reinterpret_cast<const FourUnaligned*>(from);
  const Four b = *reinterpret_cast<const FourUnaligned*>(from + from_pitch);
  const Four c = *reinterpret_cast<const FourUnaligned*>(from + 2 * from_pitch);
  const Four d = *reinterpret_cast<const FourUnaligned*>(from + 3 * from_pitch);
  const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5), ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7);
  const Four cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5), cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
  *reinterpret_cast<FourUnaligned*>(to) = __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5);
  *reinterpret_cast<FourUnaligned*>(to + to_pitch) = __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7);
  *reinterpret_cast<FourUnaligned*>(to + 2 * to_pitch) = __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5);
  *reinterpret_cast<FourUnaligned*>(to + 3 * to_pitch) = __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7);
}

// A matrix in memory: element (i, j) at data[i * row + j * column].
struct Matrix {
  float* data;
  int64_t row, column;
};

INLINE Matrix transposed(Matrix m) { return {m.data, m.column, m.row}; }

// to[i, j] = from[i, j].
static void copy(Matrix to, Matrix from, int64_t rows, int64_t columns) {
  if (to.column != 1 && to.row == 1) {
    to = transposed(to);
    from = transposed(from);
    const int64_t swapped = rows;
    rows = columns;
    columns = swapped;
  }
  if (to.column == 1 && from.column == 1) {
    for (int64_t i = 0; i < rows; i++)
      std::memcpy(to.data + i * to.row, from.data + i * from.row, static_cast<size_t>(columns) * sizeof(float));
    return;
  }
  if (to.column == 1 && from.row == 1 && rows >= 4 && columns >= 4) {
    // The last four rows or columns are partly those before again where the size is no multiple of four.
    for (int64_t four = 0; four < rows; four += 4)
      for (int64_t of = 0; of < columns; of += 4) {
        const int64_t i = least(four, rows - 4), j = least(of, columns - 4);
        transpose_four(from.data + i + j * from.column, from.column, to.data + i * to.row + j, to.row);
      }
    return;
  }
  for (int64_t i = 0; i < rows; i++)
    for (int64_t j = 0; j < columns; j++)
      to.data[i * to.row + j * to.column] = from.data[i * from.row + j * from.column];
}

// The last two axes of a tensor of four.
INLINE Matrix matrix(const Tensor& tensor, int64_t i, int64_t j, int64_t row, int64_t column) {
  const int64_t* stride = tensor.stride;
  return {tensor.data + i * stride[0] + j * stride[1] + row * stride[2] + column * stride[3], stride[2], stride[3]};
}

// Copies `from` into rows that start `pitch` floats apart, with zeros behind the columns up to `width`.
[[maybe_unused]] static void pack(float* to, int64_t pitch, int64_t width, Matrix from, int64_t rows, int64_t columns) {
  if (width > columns)
    for (int64_t i = 0; i < rows; i++) clear(to + i * pitch + columns, width - columns);
  copy({to, pitch, 1}, from, rows, columns);
}

INLINE void add(float* to, const float* from, int64_t count) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(to + i) + load(from + i));
  for (; i < count; i++) to[i] += from[i];
}

// Takes pieces of the scratch memory, each from a new cache line on.
struct Arena {
  float* base;  // null where the sizes alone are counted
  int64_t used;

  float* take(int64_t count) {
    float* piece = base ? base + used : nullptr;
    used += round_up(count, 16);
    return piece;
  }
};

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
