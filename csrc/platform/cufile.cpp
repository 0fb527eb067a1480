#include "platform/cufile.h"

#include <sys/sysmacros.h>
#include <unistd.h>

#include "base/units.h"
#include "platform/file.h"

namespace tensorstream {
namespace {

/// The name of the first entry that `library` lacks; null where it has all of them.
const char* fill(Cufile& cufile, void* library) {
#define TS_FIND_ENTRY(result, name, parameters) \
  if (!find_function(library, #name, cufile.name)) return #name;
  TS_CUFILE_ENTRIES(TS_FIND_ENTRY)
#undef TS_FIND_ENTRY
  return nullptr;
}

/// Null for a result without a name here.
const char* text_of(CufileResult result) {
  switch (result) {
#define TS_TEXT(ours, theirs, value, text) \
  case CufileResult::ours:                 \
    return text;
    TS_CUFILE_RESULTS(TS_TEXT)
#undef TS_TEXT
  }
  return nullptr;
}

std::string describe_status(CufileStatus status) {
  std::string said = describe_result(status.result);
  if (status.cuda_result != 0) {
    said += ", result " + std::to_string(status.cuda_result) + " of the CUDA driver";
  }
  return said;
}

CufileAbsence no_library(const LibraryPlaces& places) {
  const std::string what = places.library.empty()
                               ? std::string(kCufileLibraries[0]) + " was not found"
                               : places.library + " cannot be opened";
  return {CufileAbsence::Reason::kNoLibrary,
          "no cuFile: " + what +
              "; install the PyPI package nvidia-cufile (nvidia-cufile-cu12), which torch's CUDA "
              "builds bring, or the CUDA toolkit"};
}

CufileAbsence open_failed(const Cufile& cufile, const char* call, CufileStatus status) {
  std::string message =
      std::string(call) + " of " + cufile.path + " failed: " + describe_status(status);
  if (status.result == CufileResult::kDriverNotInitialized) {
    message += "; load it, or allow compatibility mode (CUFILE_ALLOW_COMPAT_MODE=true)";
  }
  return {CufileAbsence::Reason::kOpenFailed, message};
}

/// Where udev keeps what it knows of the disk that a file is on.
std::string udev_record_of(const File& file) {
  const dev_t device = file.identity().device;
  return "/run/udev/data/b" + std::to_string(major(device)) + ":" + std::to_string(minor(device));
}

}  // namespace

bool has_nvidia_fs(const CufilePlaces& places) noexcept {
  return ::access(places.nvidia_fs.c_str(), F_OK) == 0;
}

CufileOutcome open_cufile(const LibraryPlaces& places) {
  const OpenedLibrary opened = find_library(places, kCufileLibraries);
  if (opened.handle == nullptr) return no_library(places);
  Cufile cufile;
  cufile.path = opened.path;
  if (const char* const missing = fill(cufile, opened.handle)) {
    return CufileAbsence{CufileAbsence::Reason::kNoSymbol,
                         "cuFile " + opened.path + " lacks " + missing + ": install a newer one"};
  }
  const CufileStatus open = cufile.cuFileDriverOpen();
  if (open.result != CufileResult::kSuccess && open.result != CufileResult::kDriverAlreadyOpen) {
    return open_failed(cufile, "cuFileDriverOpen", open);
  }
  const CufileStatus asked = cufile.cuFileDriverGetProperties(&cufile.properties);
  if (asked.result != CufileResult::kSuccess) {
    return open_failed(cufile, "cuFileDriverGetProperties", asked);
  }
  return cufile;
}

CufileMode mode_of(const CufileProperties& properties) {
  const auto& fs = properties.nvidia_fs;
  const bool has_fs = fs.major_version != 0;
  const bool has_peers = (properties.feature_flags & kCufilePeerToPeerFeature) != 0;
  const std::string way = has_fs ? "nvidia-fs " + std::to_string(fs.major_version) + "." +
                                       std::to_string(fs.minor_version)
                                 : "PCI peer to peer";
  // Where that is allowed, reads go so without a word.
  if ((fs.control_flags & ~kCufilePollMode) != 0) {  // guard: compatibility-is-no-proof
    return {false, (has_fs ? "compatibility mode is allowed beside " + way
                           : "compatibility mode, as nvidia-fs is not loaded") +
                       ": reads may go through host memory"};
  }
  if (!has_fs && !has_peers) return {false, "nvidia-fs is not loaded"};
  return {true, "from peer to peer by " + way};
}

std::string describe_result(CufileResult result) {
  const char* const text = text_of(result);
  return std::to_string(static_cast<int>(result)) + " (" +
         (text == nullptr ? "a result without a name" : text) + ")";
}

UnsupportedError cufile_refusal(const File& file, CufileStatus status, std::source_location where) {
  std::string message = "'" + file.path() +
                        "' cannot be read by cuFile: cuFileHandleRegister gave " +
                        describe_status(status);
  const std::string record = udev_record_of(file);
  if (::access(record.c_str(), R_OK) != 0) {
    message += "; cuFile asks udev for the file system of the disk, and " + record +
               " is not there: run udev (in a container, mount the host's /run/udev)";
  }
  return UnsupportedError(message + "; or use backend=\"direct\"", where);
}

CufileError cufile_read_error(const File& file, std::uint64_t offset_bytes,
                              std::uint64_t size_bytes, CufileResult result,
                              std::source_location where) {
  return {"read of " + format_size(size_bytes) + " at offset " + std::to_string(offset_bytes) +
              " of '" + file.path() + "' into device memory failed: cuFileRead gave " +
              describe_result(result) +
              "; see cufile.log in the working folder, or use backend=\"direct\"",
          {.path = file.path(),
           .offset_bytes = offset_bytes,
           .size_bytes = size_bytes,
           .result = static_cast<int>(result)},
          where};
}

}  // namespace tensorstream
