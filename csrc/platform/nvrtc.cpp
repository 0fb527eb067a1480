#include "platform/nvrtc.h"

#include <dlfcn.h>

namespace tensorstream {
namespace {

constexpr int kSuccess = 0;

/// The name of the first entry that `library` lacks; null where it has all of them.
const char* fill(Nvrtc& nvrtc, void* library) {
#define TS_FIND_ENTRY(name, parameters) \
  if (!find_function(library, #name, nvrtc.name)) return #name;
  TS_NVRTC_ENTRIES(TS_FIND_ENTRY)
#undef TS_FIND_ENTRY
  return nullptr;
}

/// NVRTC opens its other library by a bare name, and until 13.0 without a path to itself: it finds
/// it where it is loaded already.
void load_builtins(const Nvrtc& nvrtc) {
  Dl_info place{};
  int major = 0;
  int minor = 0;
  if (dladdr(reinterpret_cast<void*>(nvrtc.nvrtcVersion), &place) == 0) return;
  if (nvrtc.nvrtcVersion(&major, &minor) != kSuccess) return;
  const std::string path = place.dli_fname;
  const std::string folder = path.substr(0, path.rfind('/') + 1);
  // What fails here is what the compiler says then.
  open_library(folder + "libnvrtc-builtins.so." + std::to_string(major) + "." +
               std::to_string(minor));
}

NvrtcAbsence no_library(const NvrtcPlaces& places) {
  std::string what = places.library.empty() ? std::string(kNvrtcLibraries[0]) + " and " +
                                                  kNvrtcLibraries[1] + " were not found"
                                            : places.library + " cannot be opened";
  return {NvrtcAbsence::Reason::kNoLibrary,
          "no compiler of CUDA kernels: " + what +
              "; install the PyPI package nvidia-cuda-nvrtc, which torch's CUDA builds bring, or "
              "the CUDA toolkit"};
}

/// A program of NVRTC, for the time of its compilation.
class Program {
 public:
  Program(const Nvrtc& nvrtc, const KernelSource& source, std::source_location where)
      : nvrtc_(nvrtc), name_(source.name), where_(where) {
    check(nvrtc.nvrtcCreateProgram(&handle_, source.text.c_str(), source.name.c_str(), 0, nullptr,
                                   nullptr),
          "nvrtcCreateProgram");
  }
  ~Program() { nvrtc_.nvrtcDestroyProgram(&handle_); }
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void compile(const std::vector<std::string>& options) {
    std::vector<const char*> texts;
    texts.reserve(options.size());
    for (const std::string& option : options) texts.push_back(option.c_str());
    const int result =
        nvrtc_.nvrtcCompileProgram(handle_, static_cast<int>(texts.size()), texts.data());
    if (result != kSuccess) raise(result, "nvrtcCompileProgram", ":\n" + log());
  }

  std::vector<std::byte> cubin() {
    std::size_t size_bytes = 0;
    check(nvrtc_.nvrtcGetCUBINSize(handle_, &size_bytes), "nvrtcGetCUBINSize");
    std::vector<std::byte> bytes(size_bytes);
    check(nvrtc_.nvrtcGetCUBIN(handle_, reinterpret_cast<char*>(bytes.data())), "nvrtcGetCUBIN");
    return bytes;
  }

 private:
  /// Empty where there is none.
  std::string log() const {
    std::size_t size_bytes = 0;
    if (nvrtc_.nvrtcGetProgramLogSize(handle_, &size_bytes) != kSuccess) return {};
    std::string text(size_bytes, '\0');
    if (nvrtc_.nvrtcGetProgramLog(handle_, text.data()) != kSuccess) return {};
    while (!text.empty() && (text.back() == '\0' || text.back() == '\n')) text.pop_back();
    return text;
  }

  void check(int result, const char* call) const {
    if (result != kSuccess) raise(result, call, "");
  }
  [[noreturn]] void raise(int result, const char* call, const std::string& more) const {
    throw CudaError(name_ + ": " + call + " of " + nvrtc_.path + " failed: error " +
                        std::to_string(result) + more,
                    call, result, where_);
  }

  const Nvrtc& nvrtc_;
  const std::string name_;
  const std::source_location where_;
  NvrtcProgram handle_ = nullptr;
};

}  // namespace

NvrtcOutcome load_nvrtc(const NvrtcPlaces& places) {
  const OpenedLibrary opened = find_library(places, kNvrtcLibraries);
  if (opened.handle == nullptr) return no_library(places);
  Nvrtc nvrtc;
  nvrtc.path = opened.path;
  if (const char* const missing = fill(nvrtc, opened.handle)) {
    return NvrtcAbsence{NvrtcAbsence::Reason::kNoSymbol, "the compiler of CUDA kernels " +
                                                             opened.path + " lacks " + missing +
                                                             ": install a newer nvidia-cuda-nvrtc"};
  }
  load_builtins(nvrtc);
  return nvrtc;
}

std::vector<std::byte> compile_cubin(const Nvrtc& nvrtc, const KernelSource& source,
                                     const std::string& architecture, std::source_location where) {
  Program program(nvrtc, source, where);
  std::vector<std::string> options = {"--gpu-architecture=" + architecture, "--std=c++17"};
  options.insert(options.end(), source.options.begin(), source.options.end());
  program.compile(options);
  return program.cubin();
}

}  // namespace tensorstream
