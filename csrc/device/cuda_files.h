// CudaFiles: files that cuFile reads straight into the memory of a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>

#include "base/mutex.h"
#include "platform/cufile.h"

namespace tensorstream {

class CudaContext;
class Device;
class File;

/// cuFile for one GPU. Thread-safe.
class CudaFiles {
 public:
  /// A file that cuFile knows, until this goes. Move-only; the file and the CudaFiles outlive it.
  class Registration {
   public:
    Registration(Registration&& other) noexcept;
    Registration(const Registration&) = delete;
    Registration& operator=(const Registration&) = delete;
    Registration& operator=(Registration&& other) = delete;
    ~Registration();

   private:
    friend class CudaFiles;
    Registration(CudaFiles& files, int descriptor) : files_(&files), descriptor_(descriptor) {}

    CudaFiles* files_;  // null where it was moved from
    int descriptor_;
  };

  /// `owner` keeps the context alive.
  CudaFiles(std::shared_ptr<const void> owner, const CudaContext& context, const Cufile& cufile);

  /// How reads get to the device.
  CufileMode mode() const { return mode_of(cufile_.properties); }
  /// The most that cuFile takes of the GPU's memory for itself.
  std::uint64_t largest_cache_bytes() const {
    return std::uint64_t{cufile_.properties.largest_cache_kib} << 10U;
  }
  /// `file` is open for direct reads, and is registered once. Raises UnsupportedError with the
  /// reason where cuFile refuses it, and CudaError.
  Registration add(const File& file);
  /// One call of cuFileRead on a file that is registered: the bytes that it read into device memory
  /// from `target` on, or below 0 an errno or a CufileResult. All that was enqueued there is done.
  std::int64_t read_once(int descriptor, std::uint64_t offset_bytes,
                         std::span<std::byte> target) noexcept;

 private:
  void remove(int descriptor) noexcept;
  CufileHandle handle_of(int descriptor);

  // Constant after construction.
  const std::shared_ptr<const void> owner_;
  const CudaContext& context_;
  const Cufile cufile_;
  const std::int64_t process_;

  // Guarded by mutex_.
  Mutex mutex_;
  std::map<int, CufileHandle> handles_ TS_GUARDED_BY(mutex_);  // by descriptor
};

/// cuFile for `device`, with the library that the device was told of. Raises UnsupportedError with
/// the reason where the device is no GPU or there is no cuFile.
std::shared_ptr<CudaFiles> open_cuda_files(const std::shared_ptr<Device>& device);

/// Why cuFile cannot read from peer to peer, as far as that is known without opening it (which
/// starts threads and writes a log); empty where it may.
std::string why_no_peer_to_peer(const Device& device);

}  // namespace tensorstream
