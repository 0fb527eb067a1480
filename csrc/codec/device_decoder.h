// Frames decoded where they are used: in a device's memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>

#include "device/device.h"

namespace tensorstream {

/// A frame of a batch, as the device reads it (16 bytes).
struct BatchedFrame {
  /// From the batch's first encoded byte, a multiple of 16.
  std::uint64_t encoded_offset = 0;
  /// From the batch's target, a multiple of 16.
  std::uint64_t decoded_offset = 0;
};
static_assert(sizeof(BatchedFrame) == 16);

/// Frames that lie together.
struct FrameRun {
  std::span<const BatchedFrame> frames;
  /// Device memory that holds these entries.
  const std::byte* table = nullptr;
  /// What their encoded offsets count from.
  const std::byte* encoded = nullptr;
};

/// Decodes batches of frames that lie in a device's memory, in a stream's order. The device
/// outlives it. Thread-safe.
class DeviceDecoder {
 public:
  virtual ~DeviceDecoder() = default;

  /// Enqueues the decoding of the frames of `runs`, each parsed and verified by the host before
  /// (FrameView::parse, verify_frame): the device checks nothing. A frame lies whole at `encoded` +
  /// its encoded_offset; decoded + decoded_offset gets the bytes that it decodes to and no more. A
  /// table holds its entries by the time that the stream gets there. All addresses are multiples of
  /// 16, and what they point to stays until the work is done; `runs` and their frames may go at
  /// once. Few frames do not fill a GPU: what is there together is best decoded by one call. Raises
  /// CudaError as streams do.
  virtual void decode(Stream& stream, std::span<const FrameRun> runs, std::byte* decoded) = 0;
  /// The same for one run.
  void decode(Stream& stream, std::span<const BatchedFrame> frames, const std::byte* table,
              const std::byte* encoded, std::byte* decoded) {
    const FrameRun run{frames, table, encoded};
    decode(stream, {&run, 1}, decoded);
  }
};

/// The decoder of a device: on a host its processors decode, on the stream's thread; on a GPU a
/// kernel, which is compiled at the device's first call, for about a second. Raises
/// UnsupportedError with the reason where the device cannot decode, as without a compiler, and
/// CudaError where compiler or driver fail.
std::unique_ptr<DeviceDecoder> create_device_decoder(Device& device);

}  // namespace tensorstream
