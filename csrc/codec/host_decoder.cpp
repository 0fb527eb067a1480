#include "codec/host_decoder.h"

#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "codec/frame_decoder.h"

namespace tensorstream {
namespace {

std::optional<FrameFault> decode_at(const std::byte* encoded, std::byte* decoded) {
  const std::span header(encoded, kFrameHeaderBytes);
  const auto parsed = FrameView::parse({encoded, FrameView::stated_bytes(header)});
  if (const auto* const fault = std::get_if<FrameFault>(&parsed)) return *fault;
  const FrameView& frame = std::get<FrameView>(parsed);
  return decode_frame(frame, {decoded, frame.header().decoded_bytes});
}

class HostDecoder final : public DeviceDecoder {
 public:
  using DeviceDecoder::decode;
  void decode(Stream& stream, std::span<const FrameRun> runs, std::byte* decoded) override {
    for (const FrameRun& run : runs) decode_run(stream, run, decoded);
  }

 private:
  static void decode_run(Stream& stream, const FrameRun& run, std::byte* decoded) {
    if (run.frames.empty()) return;
    std::vector<BatchedFrame> kept(run.frames.begin(), run.frames.end());
    stream.run([kept = std::move(kept), encoded = run.encoded, decoded] {
      for (std::size_t index = 0; index < kept.size(); ++index) {
        const auto fault =
            decode_at(encoded + kept[index].encoded_offset, decoded + kept[index].decoded_offset);
        // Nobody else is left to hear of it: the stream logs the error.
        if (fault) throw frame_error(*fault, "", "a batch", index);
      }
    });
  }
};

}  // namespace

std::unique_ptr<DeviceDecoder> create_host_decoder() { return std::make_unique<HostDecoder>(); }

}  // namespace tensorstream
