// The three products that query first consists of, for R <= kGroupHeads heads r of one query at a time. The sums of a
// tile stay in registers.
//
//     tile   R heads times N vectors: what one pass over the other operand sums
//     piece  neighbouring context positions that lie side by side in both operands
//     pitch  floats from one head, position or depth of an operand to the next
#pragma once

#include "simd.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {

// Heads of one query that go through together.
constexpr int kGroupHeads = 4;

// A rectangle of context positions in a packed operand: `count` pieces of `length` positions, `step` floats from one
// piece to the next.
struct Pieces {
  int64_t count, length, step;
};

// Vectors of the next tile where `left` are to come: tiles of nearly the same width, as a narrow one waits for its sums.
INLINE int64_t tile_width(int64_t left) { return ceil_div(left, ceil_div(left, kWide)); }

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
static void correlate(const float* left, int64_t left_pitch, int64_t depth, const float* right, int64_t pitch,
                      Pieces pieces, float* out, int64_t out_pitch) {
  const int64_t each = ceil_div(pieces.length, kLanes), count = each * pieces.count;
  int64_t piece = 0, place = 0;
  for (int64_t left_over = count, some; left_over > 0; left_over -= some) {
    const float* from[kWide];
    float* to[kWide];
    some = tile_width(left_over);
    for (int64_t j = 0; j < some; j++) {
      from[j] = right + piece * pieces.step + place;
      to[j] = out + piece * pieces.length + place;
      place += kLanes;
      if (place >= pieces.length) place = 0, piece++;
    }
    switch (some) {
      case 1: correlate_tile<R, 1>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
      case 2: correlate_tile<R, 2>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
      case 3: correlate_tile<R, 3>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
#if LAMBDANETS_LANES == 16 || defined(__aarch64__)
      case 4: correlate_tile<R, 4>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
      case 5: correlate_tile<R, 5>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
      case 6: correlate_tile<R, 6>(left, left_pitch, depth, from, pitch, to, out_pitch); break;
#endif
    }
  }
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
static void gather(const float* scores, int64_t scores_pitch, const float* right, int64_t width, Pieces pieces,
                   float* out, int64_t out_pitch) {
  int64_t i = 0;
  for (int64_t left = width / kLanes; left > 0;) {
    const int64_t some = tile_width(left);
    const float* from = right + i;
    switch (some) {
      case 1: gather_tile<R, 1>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
      case 2: gather_tile<R, 2>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
      case 3: gather_tile<R, 3>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
#if LAMBDANETS_LANES == 16 || defined(__aarch64__)
      case 4: gather_tile<R, 4>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
      case 5: gather_tile<R, 5>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
      case 6: gather_tile<R, 6>(scores, scores_pitch, from, width, pieces, out + i, out_pitch); break;
#endif
    }
    i += some * kLanes;
    left -= some;
  }
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
static void spread(const float* scores, int64_t scores_pitch, const float* left, int64_t width, Pieces pieces,
                   float* out) {
  int64_t i = 0;
  for (int64_t left_over = width / kLanes, some; left_over > 0; left_over -= some) {
    some = left_over == 4 ? 2 : least(3, left_over);
    float* to = out + i;
    switch (some) {
      case 1: spread_tile<R, 1>(scores, scores_pitch, left + i, width, pieces, to, width); break;
      case 2: spread_tile<R, 2>(scores, scores_pitch, left + i, width, pieces, to, width); break;
      case 3: spread_tile<R, 3>(scores, scores_pitch, left + i, width, pieces, to, width); break;
    }
    i += some * kLanes;
  }
}

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
