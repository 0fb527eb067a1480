#include "codec/cuda_decoder.h"

#include <algorithm>

#include "device/cuda_device.h"

namespace tensorstream {
namespace {

class CudaDecoder final : public DeviceDecoder {
 public:
  CudaDecoder(Device& device, const FrameDecodeShape& shape)
      : shape_(shape),
        kernel_(cuda_kernel(device, frame_decode_source(shape), kFrameDecodeKernel)) {}

  void decode(Stream& stream, std::span<const BatchedFrame> frames, const std::byte* table,
              const std::byte* encoded, std::byte* decoded) override {
    for (std::uint64_t done = 0; done < frames.size(); done += kMostRows) {
      const auto rows =
          static_cast<std::uint32_t>(std::min<std::uint64_t>(frames.size() - done, kMostRows));
      kernel_.launch(stream, {kWarpsOfARow / shape_.warps_a_block, rows, 32 * shape_.warps_a_block},
                     table + done * sizeof(BatchedFrame), encoded, decoded);
    }
  }

 private:
  const FrameDecodeShape shape_;
  const CudaKernel kernel_;
};

}  // namespace

std::unique_ptr<DeviceDecoder> create_cuda_decoder(Device& device, const FrameDecodeShape& shape) {
  return std::make_unique<CudaDecoder>(device, shape);
}

}  // namespace tensorstream
