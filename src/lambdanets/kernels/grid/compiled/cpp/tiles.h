// The three products that query first consists of, for R <= kGroupHeads heads r of one query at a time. The sums of a
// tile stay in registers.
//
//     tile   R heads times N vectors: what one pass over the other operand sums
//     piece  neighbouring context positions that lie side by side in both operands
//     pitch  floats from one head, position or depth of an operand to the next
#pragma once

#include <type_traits>

#include "simd.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {

// Heads of one query that go through together.
constexpr int kGroupHeads = 4;
// Vectors of a row that spread updates at a time: the operands of four heads fill the other registers.
constexpr int kUpdated = 3;

// A rectangle of context positions in a packed operand: `count` pieces of `length` positions, `step` floats from one
// piece to the next.
struct Pieces {
  int64_t count, length, step;
};

// Vectors of a row of a tile of R rows, at most.
template <int R>
constexpr int kWidest = kSums / R < 8 ? kSums / R : 8;

// Calls body(width, before) for tiles that have `count` vectors together: width.value is the number of vectors of a tile,
// known when this is compiled, and `before` that of the tiles before it. The widths, at most Widest, are nearly the same:
// a narrow tile waits for its sums.
template <int Widest, class Body>
INLINE void for_each_tile(int64_t count, Body body) {
  for (int64_t before = 0, width; before < count; before += width) {
    const int64_t left = count - before;
    width = ceil_div(left, ceil_div(left, Widest));
    switch (width) {
#define LAMBDANETS_WIDTH(n) \
  case n:                   \
    if constexpr (n <= Widest) body(std::integral_constant<int, n>{}, before); \
    break;
      LAMBDANETS_WIDTH(1)
      LAMBDANETS_WIDTH(2)
      LAMBDANETS_WIDTH(3)
      LAMBDANETS_WIDTH(4)
      LAMBDANETS_WIDTH(5)
      LAMBDANETS_WIDTH(6)
      LAMBDANETS_WIDTH(7)
      LAMBDANETS_WIDTH(8)
#undef LAMBDANETS_WIDTH
    }
  }
}

template <int R, int N>
INLINE void correlate_tile(const float* left, int64_t left_pitch, int64_t depth, const float* const* right,
                           int64_t pitch, float* const* out, int64_t out_pitch) {
  Vector sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sum[r][j] = zero();
  const float* from[N];
#pragma GCC unroll 8
  for (int j = 0; j < N; j++) from[j] = right[j];
  for (int64_t d = 0; d < depth; d++) {
    Vector operand[N];
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) {
      operand[j] = load(from[j]);
      from[j] += pitch;
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const float factor = left[r * left_pitch + d];
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) sum[r][j] += factor * operand[j];
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < N; j++)
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) store(out[j] + r * out_pitch, sum[r][j]);
}

// out[r][c] = Σ_d left[r][d] · right[d][c] over the pieces' places c, side by side in `out`.
//
// `right` has `pitch` floats from one d to the next and any alignment. Up to kLanes - 1 floats behind each piece are
// read, and up to as many behind each row of `out` written; pieces are written in order.
template <int R>
APART void correlate(const float* left, int64_t left_pitch, int64_t depth, const float* right, int64_t pitch,
                      Pieces pieces, float* out, int64_t out_pitch) {
  const int64_t each = ceil_div(pieces.length, kLanes);
  int64_t piece = 0, place = 0;
  for_each_tile<kWidest<R>>(each * pieces.count, [&](auto width, int64_t) {
    const float* from[width.value];
    float* to[width.value];
    for (int j = 0; j < width.value; j++) {
      from[j] = right + piece * pieces.step + place;
      to[j] = out + piece * pieces.length + place;
      place += kLanes;
      if (place >= pieces.length) place = 0, piece++;
    }
    correlate_tile<R, width.value>(left, left_pitch, depth, from, pitch, to, out_pitch);
  });
}

template <int R, int N>
INLINE void gather_tile(const float* scores, int64_t scores_pitch, const float* right, int64_t pitch, Pieces pieces,
                        float* out, int64_t out_pitch) {
  Vector sum[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) sum[r][j] = load(out + r * out_pitch + j * kLanes);
  const float* score = scores;
  for (int64_t piece = 0; piece < pieces.count; piece++) {
    const float* from = right + piece * pieces.step;
    for (int64_t c = 0; c < pieces.length; c++, from += pitch, score++) {
      Vector operand[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) operand[j] = load(from + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const float factor = score[r * scores_pitch];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) sum[r][j] += factor * operand[j];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) store(out + r * out_pitch + j * kLanes, sum[r][j]);
}

// out[r][i] += Σ_c scores[r][c] · right[c][i] for i < width, a whole number of vectors, c over the pieces' places.
template <int R>
APART void gather(const float* scores, int64_t scores_pitch, const float* right, int64_t width, Pieces pieces,
                   float* out, int64_t out_pitch) {
  for_each_tile<kWidest<R>>(width / kLanes, [&](auto some, int64_t before) {
    const int64_t i = before * kLanes;
    gather_tile<R, some.value>(scores, scores_pitch, right + i, width, pieces, out + i, out_pitch);
  });
}

template <int R, int N>
INLINE void spread_tile(const float* scores, int64_t scores_pitch, const float* left, int64_t left_pitch, Pieces pieces,
                        float* out, int64_t width) {
  Vector operand[R][N];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 8
    for (int j = 0; j < N; j++) operand[r][j] = load(left + r * left_pitch + j * kLanes);
  const float* score = scores;
  for (int64_t piece = 0; piece < pieces.count; piece++) {
    float* to = out + piece * pieces.step;
    for (int64_t c = 0; c < pieces.length; c++, to += width, score++) {
      Vector sum[N];
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) sum[j] = load(to + j * kLanes);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) {
        const float factor = score[r * scores_pitch];
#pragma GCC unroll 8
        for (int j = 0; j < N; j++) sum[j] += factor * operand[r][j];
      }
#pragma GCC unroll 8
      for (int j = 0; j < N; j++) store(to + j * kLanes, sum[j]);
    }
  }
}

// out[c][i] += Σ_r scores[r][c] · left[r][i] for i < width, a whole number of vectors, c over the pieces' places.
template <int R>
APART void spread(const float* scores, int64_t scores_pitch, const float* left, int64_t width, Pieces pieces,
                   float* out) {
  for_each_tile<kUpdated>(width / kLanes, [&](auto some, int64_t before) {
    const int64_t i = before * kLanes;
    spread_tile<R, some.value>(scores, scores_pitch, left + i, width, pieces, out + i, width);
  });
}

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
