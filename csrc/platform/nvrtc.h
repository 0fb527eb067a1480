// NVRTC, NVIDIA's compiler of kernels as a library: one list of its entry points, opened at run
// time. Neither a toolkit nor NVRTC is needed to build TensorStream.
#pragma once

#include <array>
#include <cstddef>
#include <source_location>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "platform/shared_library.h"
#include "tensorstream/error.h"

namespace tensorstream {

struct NvrtcProgramState;
using NvrtcProgram = NvrtcProgramState*;  // nvrtcProgram

/// The one list of its functions: entry(name as exported, parameters). All return an nvrtcResult.
// clang-format off
#define TS_NVRTC_ENTRIES(entry)                                                                   \
  entry(nvrtcVersion, (int* major, int* minor))                                                   \
  entry(nvrtcCreateProgram, (NvrtcProgram* program, const char* source, const char* name,         \
                             int headers, const char* const* texts, const char* const* names))    \
  entry(nvrtcDestroyProgram, (NvrtcProgram* program))                                             \
  entry(nvrtcCompileProgram, (NvrtcProgram program, int count, const char* const* options))       \
  entry(nvrtcGetProgramLogSize, (NvrtcProgram program, std::size_t* size_bytes))                  \
  entry(nvrtcGetProgramLog, (NvrtcProgram program, char* log))                                    \
  entry(nvrtcGetCUBINSize, (NvrtcProgram program, std::size_t* size_bytes))                       \
  entry(nvrtcGetCUBIN, (NvrtcProgram program, char* cubin))
// clang-format on

/// The table of entry points. An immutable value once loaded; its library stays loaded for good.
struct Nvrtc {
  // NOLINTNEXTLINE(bugprone-macro-parentheses): `parameters` is a parenthesised list already
#define TS_NVRTC_FIELD(name, parameters) int(*name) parameters = nullptr;
  TS_NVRTC_ENTRIES(TS_NVRTC_FIELD)
#undef TS_NVRTC_FIELD
  /// Where it was found, as the loader was asked for it.
  std::string path;
};

/// Where to look for NVRTC.
using NvrtcPlaces = LibraryPlaces;

/// Why there is no NVRTC to call.
struct NvrtcAbsence {
  enum class Reason { kNoLibrary, kNoSymbol };
  Reason reason = Reason::kNoLibrary;
  /// What is missing, and what to do.
  std::string message;
};

using NvrtcOutcome = std::variant<Nvrtc, NvrtcAbsence>;

/// The names that it is looked for by, the newest first.
inline constexpr std::array<const char*, 2> kNvrtcLibraries = {"libnvrtc.so.13", "libnvrtc.so.12"};

/// Looks for it as find_library() does.
NvrtcOutcome load_nvrtc(const NvrtcPlaces& places);

/// A source of kernels, without any header.
struct KernelSource {
  /// For messages: "frame_decode.cu".
  std::string name;
  std::string text;
  /// "-DNAME=VALUE" and others.
  std::vector<std::string> options;
};

/// Machine code for an architecture as "sm_90". Raises CudaError with the compiler's log.
std::vector<std::byte> compile_cubin(const Nvrtc& nvrtc, const KernelSource& source,
                                     const std::string& architecture,
                                     std::source_location where = std::source_location::current());

}  // namespace tensorstream
