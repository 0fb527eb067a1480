// Readers into device memory, seen as readers into host memory: the same tests hold for them.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <utility>

#include "device/cuda_device.h"
#include "fake_cuda/fake_cuda.h"
#include "io/reader.h"

namespace tensorstream {

/// A GPU of the fake driver, which reads files.
inline std::shared_ptr<Device> reading_gpu(const std::string& nvidia_fs = "/nowhere") {
  CudaDeviceOptions options;
  options.driver_library = FakeCuda::path();
  options.cufile = FakeCuda::cufile(nvidia_fs);
  return create_cuda_device(options);
}

/// Reads by begin_device_read(), and copies what came to the device back. Thread-safe.
class ByWayOfDevice final : public Reader {
 public:
  ByWayOfDevice(std::shared_ptr<Device> device, std::unique_ptr<Reader> reader)
      : device_(std::move(device)), reader_(std::move(reader)) {}

  const std::string& name() const noexcept override { return reader_->name(); }
  Tier tier() const noexcept override { return reader_->tier(); }
  std::uint64_t size_bytes() const noexcept override { return reader_->size_bytes(); }

  void read(std::uint64_t offset_bytes, std::span<std::byte> out) override {
    const auto memory = device_->allocate(out.size() + 1);
    reader_->begin_device_read(offset_bytes, {memory->data(), out.size()}).wait();
    if (out.empty()) return;
    const auto stream = device_->create_stream();
    stream->copy_to_host(out.data(), memory->data(), out.size());
    stream->synchronize();
  }

 private:
  const std::shared_ptr<Device> device_;  // shared with the reader
  const std::unique_ptr<Reader> reader_;
};

}  // namespace tensorstream
