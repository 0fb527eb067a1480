// A compiler of kernels that hands the source on. It refuses what has no kernel, and architectures
// that are none.
#include <cstring>
#include <memory>
#include <string>

#include "fake_cuda/fake_cubin.h"
#include "platform/nvrtc.h"

#define TS_FAKE_EXPORT extern "C" __attribute__((visibility("default")))

using namespace tensorstream;
using namespace tensorstream::fake_cuda;

namespace tensorstream {

#define TS_FAKE_ENTRY(name, parameters) TS_FAKE_EXPORT int name parameters;
TS_NVRTC_ENTRIES(TS_FAKE_ENTRY)
#undef TS_FAKE_ENTRY

struct NvrtcProgramState {
  std::string source;
  std::string log;
  std::string cubin;
};

}  // namespace tensorstream

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidProgram = 4;
constexpr int kInvalidOption = 5;
constexpr int kCompilation = 6;

}  // namespace

TS_FAKE_EXPORT int nvrtcVersion(int* major, int* minor) {
  *major = 13;
  *minor = 0;
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcCreateProgram(NvrtcProgram* program, const char* source,
                                      const char* /*name*/, int headers,
                                      const char* const* /*texts*/, const char* const* /*names*/) {
  if (headers != 0) return kInvalidProgram;
  *program = std::make_unique<NvrtcProgramState>(NvrtcProgramState{source, "", ""}).release();
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcDestroyProgram(NvrtcProgram* program) {
  const std::unique_ptr<NvrtcProgramState> ended(*program);
  *program = nullptr;
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcCompileProgram(NvrtcProgram program, int count,
                                       const char* const* options) {
  std::string lines;
  for (int i = 0; i < count; ++i) {
    const std::string option = options[i];
    lines += option + "\n";
    const bool known = option.starts_with("--gpu-architecture=sm_") ||
                       option.starts_with("--std=c++") || option.starts_with("-D");
    if (known) continue;
    program->log = "unrecognized option " + option;
    return kInvalidOption;
  }
  if (program->source.find("__global__") == std::string::npos) {
    program->log = "the fake compiler found no kernel\n";
    return kCompilation;
  }
  program->cubin = std::string(kFakeCubin) + lines + program->source;
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcGetProgramLogSize(NvrtcProgram program, std::size_t* size_bytes) {
  *size_bytes = program->log.size() + 1;
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcGetProgramLog(NvrtcProgram program, char* log) {
  std::memcpy(log, program->log.c_str(), program->log.size() + 1);
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcGetCUBINSize(NvrtcProgram program, std::size_t* size_bytes) {
  *size_bytes = program->cubin.size() + 1;
  return kSuccess;
}

TS_FAKE_EXPORT int nvrtcGetCUBIN(NvrtcProgram program, char* cubin) {
  std::memcpy(cubin, program->cubin.c_str(), program->cubin.size() + 1);
  return kSuccess;
}
