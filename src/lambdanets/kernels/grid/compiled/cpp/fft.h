// Fourier transforms of a few dozen to a few thousand points, vectorised over channels: a point is two vectors, real
// and imaginary parts, and one transform does kLanes complex channels, or twice as many real ones, side by side.
//
// Stockham's order, factors 7, 5, 3, 4 and 2: each pass reads one buffer and writes the other, and the result is in
// order. The inverse, without a factor, is the same with real and imaginary parts swapped.
#pragma once

#include <cmath>

#include "simd.h"

namespace lambdanets {
namespace LAMBDANETS_ISA {

// Floats of a point.
constexpr int64_t kPoint = 2 * kLanes;

// Cost of a pass over one point by its factor, counted in vector operations.
INLINE int64_t factor_cost(int64_t factor) {
  const int64_t costs[] = {0, 0, 7, 10, 11, 14, 0, 18};
  return costs[factor];
}

// Splits a length into factors; returns how many there are, or -1 where it has another prime factor.
INLINE int factorise(int64_t length, int64_t* factors) {
  const int64_t known[] = {7, 5, 3, 4, 2};
  int count = 0;
  for (int64_t factor : known)
    while (length % factor == 0) {
      factors[count++] = factor;
      length /= factor;
    }
  return length == 1 ? count : -1;
}

// The length >= least, at least 1, that is the fastest to transform.
static inline int64_t good_length(int64_t least_length) {
  int64_t best = 0, best_cost = INT64_MAX, factors[64];
  for (int64_t length = least_length; length * factor_cost(2) < best_cost; length++) {  // 2 is the cheapest
    const int count = factorise(length, factors);
    if (count < 0) continue;
    int64_t cost = 0;
    for (int i = 0; i < count; i++) cost += length * factor_cost(factors[i]);
    if (cost < best_cost) best = length, best_cost = cost;
  }
  return best;
}

struct Transform {
  int64_t length;
  const float* roots;  // exp(-2πi j / length), as (cos, sin), for each j
  int64_t factors[64];
  int count;

  Transform(int64_t points, const float* given) : length(points), roots(given), count(factorise(points, factors)) {}
};

// Floats of a transform's roots.
INLINE int64_t roots_size(int64_t length) { return 2 * length; }

static inline void make_roots(float* roots, int64_t length) {
  const double turn = 6.283185307179586476925286766559;
  for (int64_t j = 0; j < length; j++) {
    roots[2 * j] = static_cast<float>(std::cos(turn * static_cast<double>(j) / static_cast<double>(length)));
    roots[2 * j + 1] = static_cast<float>(-std::sin(turn * static_cast<double>(j) / static_cast<double>(length)));
  }
}

// cos and sin of 2π j / R, for odd R.
template <int R>
struct Circle;
template <>
struct Circle<3> {
  static constexpr float cosine[3] = {1.0f, -0.5f, -0.5f}, sine[3] = {0.0f, 0.8660254037844386f, -0.8660254037844386f};
};
template <>
struct Circle<5> {
  static constexpr float cosine[5] = {1.0f, 0.30901699437494745f, -0.8090169943749475f, -0.8090169943749475f,
                                      0.30901699437494745f},
                         sine[5] = {0.0f, 0.9510565162951535f, 0.5877852522924731f, -0.5877852522924731f,
                                    -0.9510565162951535f};
};
template <>
struct Circle<7> {
  static constexpr float cosine[7] = {1.0f,
                                      0.6234898018587336f,
                                      -0.2225209339563144f,
                                      -0.9009688679024191f,
                                      -0.9009688679024191f,
                                      -0.2225209339563144f,
                                      0.6234898018587336f},
                         sine[7] = {0.0f,
                                    0.7818314824680298f,
                                    0.9749279121818236f,
                                    0.4338837391175581f,
                                    -0.4338837391175581f,
                                    -0.9749279121818236f,
                                    -0.7818314824680298f};
};

// A transform of R points in registers.
template <int R>
INLINE void butterfly(Vector* real, Vector* imaginary) {
  if constexpr (R == 2) {
    const Vector r = real[1], i = imaginary[1];
    real[1] = real[0] - r, imaginary[1] = imaginary[0] - i;
    real[0] += r, imaginary[0] += i;
  } else if constexpr (R == 4) {
    const Vector ar = real[0] + real[2], ai = imaginary[0] + imaginary[2];
    const Vector br = real[0] - real[2], bi = imaginary[0] - imaginary[2];
    const Vector cr = real[1] + real[3], ci = imaginary[1] + imaginary[3];
    const Vector dr = real[1] - real[3], di = imaginary[1] - imaginary[3];
    real[0] = ar + cr, imaginary[0] = ai + ci;
    real[1] = br + di, imaginary[1] = bi - dr;
    real[2] = ar - cr, imaginary[2] = ai - ci;
    real[3] = br - di, imaginary[3] = bi + dr;
  } else {
    constexpr int half = R / 2;
    Vector sum_r[half], sum_i[half], gap_r[half], gap_i[half];
#pragma GCC unroll 8
    for (int j = 0; j < half; j++) {
      sum_r[j] = real[j + 1] + real[R - 1 - j], sum_i[j] = imaginary[j + 1] + imaginary[R - 1 - j];
      gap_r[j] = real[j + 1] - real[R - 1 - j], gap_i[j] = imaginary[j + 1] - imaginary[R - 1 - j];
    }
    const Vector first_r = real[0], first_i = imaginary[0];
#pragma GCC unroll 8
    for (int j = 0; j < half; j++) real[0] += sum_r[j], imaginary[0] += sum_i[j];
#pragma GCC unroll 8
    for (int k = 1; k <= half; k++) {
      Vector even_r = first_r, even_i = first_i, odd_r = zero(), odd_i = zero();
#pragma GCC unroll 8
      for (int j = 0; j < half; j++) {
        const float cosine = Circle<R>::cosine[(j + 1) * k % R], sine = Circle<R>::sine[(j + 1) * k % R];
        even_r += cosine * sum_r[j], even_i += cosine * sum_i[j];
        odd_r += sine * gap_r[j], odd_i += sine * gap_i[j];
      }
      real[k] = even_r + odd_i, imaginary[k] = even_i - odd_r;
      real[R - k] = even_r - odd_i, imaginary[R - k] = even_i + odd_r;
    }
  }
}

// One pass with the factor R over `blocks` groups of `step` points.
template <int R, bool Inverse>
static void pass(const float* from, float* to, int64_t blocks, int64_t step, const float* roots) {
  constexpr int64_t re = Inverse ? kLanes : 0, im = Inverse ? 0 : kLanes;
  for (int64_t p = 0; p < blocks; p++) {
    float cosine[R], sine[R];
#pragma GCC unroll 8
    for (int i = 1; i < R; i++) cosine[i] = roots[2 * p * i * step], sine[i] = roots[2 * p * i * step + 1];
    for (int64_t q = 0; q < step; q++) {
      Vector real[R], imaginary[R];
#pragma GCC unroll 8
      for (int i = 0; i < R; i++) {
        const float* point = from + (q + step * (p + blocks * i)) * kPoint;
        real[i] = load(point + re), imaginary[i] = load(point + im);
      }
      butterfly<R>(real, imaginary);
      float* point = to + (q + step * R * p) * kPoint;
      store(point + re, real[0]);
      store(point + im, imaginary[0]);
#pragma GCC unroll 8
      for (int i = 1; i < R; i++) {
        point = to + (q + step * (R * p + i)) * kPoint;
        store(point + re, cosine[i] * real[i] - sine[i] * imaginary[i]);
        store(point + im, cosine[i] * imaginary[i] + sine[i] * real[i]);
      }
    }
  }
}

// Transforms the points of `a`; the result is in the returned one of the two buffers.
template <bool Inverse>
static float* transform(const Transform& plan, float* a, float* b) {
  int64_t rest = plan.length, step = 1;
  for (int i = 0; i < plan.count; i++) {
    const int64_t factor = plan.factors[i];
    rest /= factor;
    switch (factor) {
      case 2: pass<2, Inverse>(a, b, rest, step, plan.roots); break;
      case 3: pass<3, Inverse>(a, b, rest, step, plan.roots); break;
      case 4: pass<4, Inverse>(a, b, rest, step, plan.roots); break;
      case 5: pass<5, Inverse>(a, b, rest, step, plan.roots); break;
      default: pass<7, Inverse>(a, b, rest, step, plan.roots); break;
    }
    step *= factor;
    float* other = a;
    a = b;
    b = other;
  }
  return a;
}

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
