// A driver of a good version that lacks everything but that.
#include "platform/cuda_driver.h"

extern "C" __attribute__((visibility("default"))) tensorstream::CudaResult cuDriverGetVersion(
    int* version) {
  *version = 13000;
  return tensorstream::CudaResult::kSuccess;
}
