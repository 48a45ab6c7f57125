// The functions that Python calls: the choice of an instruction set, PyTorch's threads, the kernels.
#include <atomic>
#include <cstring>

#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "abi.h"
#include "parallel.h"
#include "sizes.h"

namespace lambdanets {

#define LAMBDANETS_DECLARE(isa) \
  namespace isa {               \
  extern const Kernel kQueryFirst, kSpectral; \
  extern const Sizes kSizes;    \
  }
LAMBDANETS_DECLARE(portable)
#if defined(LAMBDANETS_X86)
LAMBDANETS_DECLARE(avx2)
LAMBDANETS_DECLARE(avx512)
#endif

namespace {

struct Level {
  const char* name;
  bool (*runs)();
  const Kernel* kernels[2];
  const Sizes* sizes;
};

// From the best to the one that every machine can run.
const Level kLevels[] = {
#if defined(LAMBDANETS_X86)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma");
     },
     {&avx512::kQueryFirst, &avx512::kSpectral},
     &avx512::kSizes},
    {"avx2",
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     {&avx2::kQueryFirst, &avx2::kSpectral},
     &avx2::kSizes},
#endif
    {"portable", [] { return true; }, {&portable::kQueryFirst, &portable::kSpectral}, &portable::kSizes},
};
const int64_t kNumLevels = sizeof(kLevels) / sizeof(kLevels[0]);

// The kernel at a level. A point of the spectral kernel has two vectors: of AVX-512 the second one would be empty for as
// many channels as a point of AVX2 holds, so that these go to AVX2.
const Kernel& kernel_at(int64_t level, int64_t kernel, const Problem& problem) {
#if defined(LAMBDANETS_X86)
  constexpr int64_t kAvx512 = 0, kAvx2 = 1, kSpectralKernel = 1, kAvx2Channels = 16;
  if (level == kAvx512 && kernel == kSpectralKernel && problem.dim_value <= kAvx2Channels) level = kAvx2;
#endif
  return *kLevels[level].kernels[kernel];
}

typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*),
                               void* context);
std::atomic<ParallelFor> parallel_for{nullptr};

struct Range {
  void (*body)(int64_t, void*);
  void* context;
};

void run_range(int64_t begin, int64_t end, void* context) {
  const Range& range = *static_cast<const Range*>(context);
  for (int64_t i = begin; i < end; i++) range.body(i, range.context);
}

}  // namespace

void parallel(int64_t count, int64_t slots, void (*body)(int64_t, void*), void* context) {
  Range range{body, context};
  const int64_t each = (count + slots - 1) / slots;
  const ParallelFor given = parallel_for.load(std::memory_order_relaxed);
  // It fails before it has begun, if at all.
  if (each >= count || given == nullptr || given(0, count, each, run_range, &range) != 0) run_range(0, count, &range);
}

}  // namespace lambdanets

using lambdanets::KernelCall;
using lambdanets::kLevels;
using lambdanets::kNumLevels;

// Number of the version of this interface; binding.py refuses another.
LAMBDANETS_EXPORT int64_t lambdanets_version() { return 2; }

LAMBDANETS_EXPORT int64_t lambdanets_num_levels() { return kNumLevels; }

LAMBDANETS_EXPORT const char* lambdanets_level_name(int64_t level) { return kLevels[level].name; }

LAMBDANETS_EXPORT bool lambdanets_level_runs(int64_t level) { return kLevels[level].runs(); }

// Give PyTorch's torch_parallel_for. Threads do not outlive a fork, so in a child everything runs in its one thread.
LAMBDANETS_EXPORT void lambdanets_use_threads(void* function) {
  lambdanets::parallel_for.store(reinterpret_cast<lambdanets::ParallelFor>(function));
#if !defined(_WIN32)
  static const int registered =
      pthread_atfork(nullptr, nullptr, [] { lambdanets::parallel_for.store(nullptr); });
  (void)registered;
#endif
}

LAMBDANETS_EXPORT int64_t lambdanets_scratch(int64_t level, int64_t kernel, const lambdanets::Problem* problem,
                                             int64_t slots, bool has_content, bool backward) {
  return lambdanets::kernel_at(level, kernel, *problem).scratch(*problem, slots, has_content, backward);
}

LAMBDANETS_EXPORT void lambdanets_forward(int64_t level, int64_t kernel, const KernelCall* call) {
  lambdanets::kernel_at(level, kernel, call->problem).forward(*call);
}

LAMBDANETS_EXPORT void lambdanets_backward(int64_t level, int64_t kernel, const KernelCall* call) {
  lambdanets::kernel_at(level, kernel, call->problem).backward(*call);
}

LAMBDANETS_EXPORT int64_t lambdanets_sizes_scratch(int64_t level, const lambdanets::Problem* problem, int64_t slots,
                                                   bool backward) {
  return kLevels[level].sizes->scratch(*problem, slots, backward);
}

LAMBDANETS_EXPORT bool lambdanets_sizes_differ(int64_t level, const lambdanets::SizesCall* call) {
  return kLevels[level].sizes->differ(*call);
}
