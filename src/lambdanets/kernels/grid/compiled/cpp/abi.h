// The C interface between Python and the kernels: raw pointers, sizes and strides. binding.py mirrors the structures.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define LAMBDANETS_EXPORT extern "C" __declspec(dllexport)
#else
#define LAMBDANETS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace lambdanets {

// A float32 tensor of up to four axes; strides in elements.
struct Tensor {
  float* data;
  int64_t stride[4];
};

// Sizes of one position term on an image; a sequence is an image of one row.
struct Problem {
  int64_t batch, heads, dim_key, dim_value, intra_depth;
  int64_t rows, columns;                // of the grid
  int64_t extent_rows, extent_columns;  // of the table
  int64_t origin_row, origin_column;    // index of offset 0 in the table
};

// One call of a kernel.
struct KernelCall {
  Problem problem;
  Tensor query;    // (b, h, n, k)
  Tensor value;    // (b, u, n, v)
  Tensor table;    // (u, k, rows, columns)
  Tensor content;  // (b, k, v), or null data
  Tensor out;      // (b, h, n, v): written in forward; its gradient, read, in backward
  // Written in backward, in the axes of what they are gradients of; grad_content has null data where content has.
  Tensor grad_query, grad_value, grad_table, grad_content;
  float* scratch;
  int64_t slots;  // parts that the tasks are shared by, which run in parallel; the bits of the result depend on it
};

// One kernel at one instruction set.
struct Kernel {
  int64_t (*scratch)(const Problem&, int64_t slots, bool has_content, bool backward);  // number of floats
  void (*forward)(const KernelCall&);
  void (*backward)(const KernelCall&);
};

}  // namespace lambdanets
