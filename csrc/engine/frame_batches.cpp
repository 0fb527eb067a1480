#include "engine/frame_batches.h"

#include <algorithm>

#include "base/units.h"
#include "codec/compression_level.h"
#include "codec/device_decoder.h"
#include "codec/frame_encoder.h"
#include "codec/frame_format.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kEntryBytes = sizeof(BatchedFrame);
static_assert(kEntryBytes == kFrameAlignment,
              "frames behind a table are aligned as they have to be");
// Of a piece: so much larger may a batch be, so that raw frames of a whole piece find room in one.
constexpr std::uint64_t kHeadersDivisor = 1024;

/// The batches of parts, added in their order.
class BatchCutter {
 public:
  explicit BatchCutter(std::uint64_t limit_bytes) : limit_bytes_(limit_bytes) {}

  void add(std::size_t part, std::uint64_t size_bytes) {
    const std::uint64_t bound = frame_bound(size_bytes) + kEntryBytes;
    if (batches_.empty() || batches_.back().bound_bytes + bound > limit_bytes_) {
      batches_.push_back({part, 0, 0});
    }
    ++batches_.back().part_count;
    batches_.back().bound_bytes += bound;
  }
  std::vector<FrameBatch> take() { return std::move(batches_); }

 private:
  const std::uint64_t limit_bytes_;
  std::vector<FrameBatch> batches_;
};

}  // namespace

std::uint64_t FrameBatch::table_bytes() const noexcept { return kEntryBytes * part_count; }

std::uint64_t batch_limit(std::uint64_t piece_bytes) noexcept {
  return std::max(piece_bytes + piece_bytes / kHeadersDivisor,
                  frame_bound(kFrameBytes) + kEntryBytes);
}

FrameBatches cut_into_frames(const Group& group, std::span<const TensorSpec> tensors,
                             std::uint64_t piece_bytes) {
  FrameBatches result;
  BatchCutter cutter(batch_limit(piece_bytes));
  for (std::size_t position = 0; position < group.tensors.size(); ++position) {
    const std::uint64_t size_bytes = tensors[group.tensors[position]].size_bytes;
    for (std::uint64_t offset = 0; offset < size_bytes; offset += kFrameBytes) {
      const std::uint64_t part = std::min(kFrameBytes, size_bytes - offset);
      cutter.add(result.parts.size(), part);
      result.parts.push_back({position, offset, part});
    }
  }
  result.batches = cutter.take();
  return result;
}

bool is_worth_encoding(const Group& group, std::span<const TensorSpec> tensors) {
  if (group.residency == Residency::kByRows) return false;
  std::uint64_t raw_bytes = 0;
  for (const TensorId tensor : group.tensors) raw_bytes += tensors[tensor].size_bytes;
  return raw_bytes != 0 && pays(usual_coded_bytes(group, tensors), raw_bytes);
}

std::uint64_t encoded_bytes(std::span<const Group> groups, const Plan& plan,
                            std::span<const TensorSpec> tensors) {
  std::uint64_t sum = 0;
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const GroupPlacement& placed = plan.groups[i];
    const bool goes_home = placed.placement == Placement::kStreamed && !placed.from_disk;
    if (!goes_home || !is_worth_encoding(groups[i], tensors)) continue;
    for (const TensorId tensor : groups[i].tensors) {
      if (tensors[tensor].frame_bytes == 0) sum += tensors[tensor].size_bytes;
    }
  }
  return sum;
}

bool streams_frames(std::span<const Group> groups, const Plan& plan,
                    std::span<const TensorSpec> tensors) {
  const auto is_frames = [&](TensorId tensor) { return tensors[tensor].frame_bytes != 0; };
  for (std::size_t i = 0; i < groups.size(); ++i) {
    const bool streamed = plan.groups[i].placement == Placement::kStreamed;
    if (streamed && std::ranges::any_of(groups[i].tensors, is_frames)) return true;
  }
  return false;
}

std::uint64_t usual_coded_bytes(const Group& group, std::span<const TensorSpec> tensors) {
  double coded = 0;
  for (const TensorId tensor : group.tensors) {
    coded += static_cast<double>(tensors[tensor].size_bytes) * usual_ratio(tensors[tensor].dtype);
  }
  return static_cast<std::uint64_t>(coded);
}

std::uint64_t largest_batch_bytes(std::span<const Group> groups,
                                  std::span<const TensorSpec> tensors, std::uint64_t piece_bytes) {
  std::uint64_t largest = 0;
  for (const Group& group : groups) {
    if (!is_worth_encoding(group, tensors)) continue;
    for (const FrameBatch& batch : cut_into_frames(group, tensors, piece_bytes).batches) {
      largest = std::max(largest, batch.bound_bytes);
    }
  }
  return largest;
}

std::vector<GroupFootprint> coded_footprints(std::span<const Group> groups,
                                             std::span<const TensorSpec> tensors,
                                             ComputePlace place, std::uint64_t kept_page_bytes) {
  std::vector<GroupFootprint> result = footprints(groups, tensors, place);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    result[i].decodes_frames = result[i].frame_bytes.has_value();
    if (!is_worth_encoding(groups[i], tensors)) continue;
    const std::uint64_t coded = usual_coded_bytes(groups[i], tensors);
    result[i].coded_bytes = coded;
    result[i].kept_bytes = taken_bytes(coded, kept_page_bytes);
  }
  return result;
}

}  // namespace tensorstream
