// Vectors of float32 over the compiler's vector extensions. Compiled once for each instruction set: LAMBDANETS_ISA
// names the namespace, so that nothing of one set can be linked into another.
#pragma once

#include "abi.h"

#if defined(__AVX512F__)
#define LAMBDANETS_LANES 16
#elif defined(__AVX2__)
#define LAMBDANETS_LANES 8
#else
#define LAMBDANETS_LANES 4
#endif

#define INLINE static inline __attribute__((always_inline))
// A function that keeps the registers to itself.
#define APART static __attribute__((noinline))

namespace lambdanets {
namespace LAMBDANETS_ISA {

constexpr int64_t kLanes = LAMBDANETS_LANES;
// Sums that a tile keeps in registers, beside its operands.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kSums = 24;  // of 32
#else
constexpr int kSums = 12;  // of 16
#endif

typedef float Vector __attribute__((vector_size(LAMBDANETS_LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LAMBDANETS_LANES * 4), aligned(4), may_alias));

INLINE Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
INLINE void store(float* to, Vector vector) { *reinterpret_cast<Unaligned*>(to) = vector; }
INLINE Vector zero() { return Vector{}; }

INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
INLINE int64_t round_up(int64_t size, int64_t to) { return ceil_div(size, to) * to; }
// Whole vectors.
INLINE int64_t padded(int64_t size) { return round_up(size, kLanes); }

INLINE void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = 0.0f;
}

}  // namespace LAMBDANETS_ISA
}  // namespace lambdanets
