#include "io/reader.h"

#include "io/file_window.h"
#include "tensorstream/error.h"

namespace tensorstream {

const FileIdentity* Reader::identity() const noexcept { return nullptr; }

std::uint64_t Reader::read_frame(std::uint64_t /*offset_bytes*/, std::uint64_t /*size_bytes*/,
                                 std::span<std::byte> /*out*/) {
  return 0;
}

PendingRead Reader::begin_read(std::uint64_t offset_bytes, std::span<std::byte> out) {
  read(offset_bytes, out);
  return {};
}

std::optional<FrameSpan> Reader::frames_at(std::uint64_t /*offset_bytes*/,
                                           std::uint64_t /*decoded_bytes*/,
                                           std::uint64_t /*most_stored_bytes*/) const {
  return std::nullopt;
}

PendingRead Reader::begin_frame_read(const FrameSpan& /*span*/, std::span<std::byte> /*out*/) {
  throw UnsupportedError("'" + name() + "' has no frames");
}

std::uint64_t Reader::frame_bytes(std::uint64_t /*offset_bytes*/,
                                  std::uint64_t /*size_bytes*/) const noexcept {
  return 0;
}

bool Reader::reads_to_device() const noexcept { return false; }

PendingRead Reader::begin_device_read(std::uint64_t /*offset_bytes*/,
                                      std::span<std::byte> /*target*/) {
  throw UnsupportedError("'" + name() + "' cannot be read straight into a device's memory");
}

std::uint64_t Reader::best_read_bytes(std::uint64_t /*offset_bytes*/) const noexcept { return 0; }

std::uint64_t Reader::best_shift(std::uint64_t /*offset_bytes*/) const noexcept { return 0; }

const std::byte* Reader::address(std::uint64_t /*offset_bytes*/) const noexcept { return nullptr; }

std::uint64_t Reader::pinned_end(std::uint64_t offset_bytes) const noexcept { return offset_bytes; }

PinnedFile* Reader::pinned_file() const noexcept { return nullptr; }

std::unique_ptr<FileWindow> Reader::window(std::uint64_t /*offset_bytes*/,
                                           std::uint64_t /*size_bytes*/) const {
  return nullptr;
}

bool Reader::cached(std::uint64_t /*offset_bytes*/, std::uint64_t /*size_bytes*/) const noexcept {
  return true;
}

void Reader::prefetch(std::uint64_t /*offset_bytes*/, std::uint64_t /*size_bytes*/) const noexcept {
}

}  // namespace tensorstream
