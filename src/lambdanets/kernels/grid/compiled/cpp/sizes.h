// The look at sizes that sizes.cpp takes.
#pragma once

#include "abi.h"

namespace lambdanets {

// One look at the numbers that a kernel would sum.
struct SizesCall {
  Problem problem;
  Tensor query;  // (b, h, n, k); read where there is a gradient
  Tensor value;  // (b, u, n, v)
  Tensor grad;   // (b, h, n, v), the output's gradient, or null data in forward
  float* scratch;
  int64_t slots;
  int64_t block_rows, block_columns;
  int64_t mixes_channels;  // 1 if errors spread over the channels too, else 0
  double ratio;            // largest size over the largest of a block from which errors show
};

struct Sizes {
  int64_t (*scratch)(const Problem&, int64_t slots, bool backward);  // number of floats
  bool (*differ)(const SizesCall&);
};

}  // namespace lambdanets
