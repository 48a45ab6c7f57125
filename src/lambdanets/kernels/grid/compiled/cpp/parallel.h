// The loop over the tasks of a kernel; library.cpp has it.
#pragma once

#include <cstdint>

namespace lambdanets {

// Run body(i, context) for i in [0, count), in at most `slots` of PyTorch's threads where they have been given: a call of
// one slot is too small for others to be woken.
void parallel(int64_t count, int64_t slots, void (*body)(int64_t, void*), void* context);

}  // namespace lambdanets
