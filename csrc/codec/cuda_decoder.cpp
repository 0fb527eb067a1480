#include "codec/cuda_decoder.h"

#include <algorithm>
#include <cstdint>
#include <limits>

#include "device/cuda_device.h"

namespace tensorstream {
namespace {

/// What one launch decodes.
class Launch {
 public:
  Launch() { runs_.first_rows.fill(std::numeric_limits<std::uint32_t>::max()); }

  bool has_room() const { return count_ < kMostRuns && rows_ < kMostRows; }
  /// Adds frames of a run from `first` on, as many as it has rows for; how many these are.
  std::uint32_t add(const FrameRun& run, std::uint64_t first) {
    const auto added = static_cast<std::uint32_t>(
        std::min<std::uint64_t>(run.frames.size() - first, kMostRows - rows_));
    runs_.tables[count_] =
        reinterpret_cast<std::uintptr_t>(run.table + first * sizeof(BatchedFrame));
    runs_.encoded[count_] = reinterpret_cast<std::uintptr_t>(run.encoded);
    runs_.first_rows[count_++] = rows_;
    rows_ += added;
    return added;
  }
  std::uint32_t rows() const { return rows_; }
  const FrameRuns& runs() const { return runs_; }

 private:
  FrameRuns runs_;
  std::uint32_t count_ = 0;
  std::uint32_t rows_ = 0;
};

class CudaDecoder final : public DeviceDecoder {
 public:
  CudaDecoder(Device& device, const FrameDecodeShape& shape)
      : shape_(shape),
        kernel_(cuda_kernel(device, frame_decode_source(shape), kFrameDecodeKernel)) {}

  using DeviceDecoder::decode;
  void decode(Stream& stream, std::span<const FrameRun> runs, std::byte* decoded) override {
    Launch launch;
    for (const FrameRun& run : runs) {
      for (std::uint64_t done = 0; done < run.frames.size();) {
        if (!launch.has_room()) enqueue(stream, launch, decoded);
        done += launch.add(run, done);
      }
    }
    enqueue(stream, launch, decoded);
  }

 private:
  void enqueue(Stream& stream, Launch& launch, std::byte* decoded) const {
    if (launch.rows() == 0) return;
    kernel_.launch(stream,
                   {kWarpsOfARow / shape_.warps_a_block, launch.rows(), 32 * shape_.warps_a_block},
                   launch.runs(), decoded);
    launch = {};
  }

  const FrameDecodeShape shape_;
  const CudaKernel kernel_;
};

}  // namespace

std::unique_ptr<DeviceDecoder> create_cuda_decoder(Device& device, const FrameDecodeShape& shape) {
  return std::make_unique<CudaDecoder>(device, shape);
}

}  // namespace tensorstream
