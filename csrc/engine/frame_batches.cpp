#include "engine/frame_batches.h"

#include <algorithm>
#include <cmath>

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

// Of what is usual: so much more room does a batch get.
constexpr std::uint64_t kRoomDivisor = 64;

// Chunks that the largest GPUs decode at once: a wave, of 24 warps on each of 132 multiprocessors.
constexpr std::uint64_t kWaveChunks = 3168;

std::uint64_t chunks_of(std::uint64_t part_bytes, Dtype dtype) {
  return divide_up(part_bytes * 8, std::uint64_t{kChunkElements} * dtype_bits(dtype));
}

/// What a part of a tensor of `dtype` usually becomes, with its entry of the table.
std::uint64_t usual_frame_bytes(std::uint64_t part_bytes, Dtype dtype) {
  const auto coded =
      static_cast<std::uint64_t>(static_cast<double>(part_bytes) * usual_ratio(dtype));
  return std::min(align_up(coded, kFrameAlignment), frame_bound(part_bytes)) + kEntryBytes;
}

/// The frames of a group, all together and the largest.
struct FrameSums {
  std::size_t count = 0;
  std::uint64_t chunks = 0;
  std::uint64_t usual_bytes = 0;
  std::uint64_t bound_bytes = 0;
  std::uint64_t largest_usual_bytes = 0;
  std::uint64_t largest_bound_bytes = 0;

  void add(std::uint64_t part_bytes, Dtype dtype, std::uint64_t times) {
    if (part_bytes == 0 || times == 0) return;
    const std::uint64_t usual = usual_frame_bytes(part_bytes, dtype);
    const std::uint64_t bound = frame_bound(part_bytes) + kEntryBytes;
    count += times;
    chunks += chunks_of(part_bytes, dtype) * times;
    usual_bytes += usual * times;
    bound_bytes += bound * times;
    largest_usual_bytes = std::max(largest_usual_bytes, usual);
    largest_bound_bytes = std::max(largest_bound_bytes, bound);
  }
};

FrameSums sums_of(const Group& group, std::span<const TensorSpec> tensors) {
  FrameSums sums;
  for (const TensorId id : group.tensors) {
    sums.add(kFrameBytes, tensors[id].dtype, tensors[id].size_bytes / kFrameBytes);
    sums.add(tensors[id].size_bytes % kFrameBytes, tensors[id].dtype, 1);
  }
  return sums;
}

/// How a group's frames are shared out to batches, by what they usually take coded. A batch takes
/// more than its share by less than one frame: half of its first and of its last.
struct Shares {
  std::size_t count = 0;
  double first_bytes = 0;
  double other_bytes = 0;

  /// Of the frame whose middle is there.
  std::size_t batch_at(double bytes) const {
    return bytes < first_bytes || count < 2
               ? 0
               : 1 + static_cast<std::size_t>((bytes - first_bytes) / other_bytes);
  }
  double largest_bytes() const { return std::max(first_bytes, other_bytes); }
};

/// As many as have to be, evenly; or all but the first in whole waves, where these are fewer.
Shares shares_of(const FrameSums& sums, std::uint64_t most_bytes) {
  if (sums.count == 0) return {};
  const auto all = static_cast<double>(sums.usual_bytes);
  if (sums.usual_bytes <= most_bytes) return {1, all, all};
  const std::uint64_t room = most_bytes - std::min(most_bytes - 1, sums.largest_usual_bytes);
  const auto count = std::min<std::uint64_t>(divide_up(sums.usual_bytes, room), sums.count);
  const auto others = static_cast<double>(count - 1);
  const double mean = all / static_cast<double>(count);

  const double wave = all / static_cast<double>(sums.chunks) * static_cast<double>(kWaveChunks);
  const double sure_wave = wave - static_cast<double>(sums.largest_usual_bytes);
  const double waves = sure_wave > 0 ? std::floor(mean / sure_wave) : 0;
  const double first = all - others * waves * sure_wave;
  const bool fewer =
      std::ceil(first / wave) + others * waves < (others + 1) * std::ceil(mean / wave);
  if (waves < 1 || first > static_cast<double>(room) || !fewer) return {count, mean, mean};
  return {count, first, waves * sure_wave};
}

BatchSize batch_size(const FrameSums& sums, std::uint64_t most_bytes) {
  const Shares shares = shares_of(sums, most_bytes);
  if (shares.count == 0) return {};
  auto usual = static_cast<std::uint64_t>(std::ceil(shares.largest_bytes()));
  if (shares.count > 1) usual += sums.largest_usual_bytes;
  const std::uint64_t room = std::min({usual + usual / kRoomDivisor, most_bytes, sums.bound_bytes});
  return {shares.count, std::max(room, sums.largest_bound_bytes)};
}

}  // namespace

std::uint64_t frame_table_bytes(std::size_t frames) noexcept { return kEntryBytes * frames; }

std::uint64_t batch_limit(std::uint64_t piece_bytes) noexcept {
  return std::max(piece_bytes + piece_bytes / kHeadersDivisor,
                  frame_bound(kFrameBytes) + kEntryBytes);
}

BatchSize batch_size(const Group& group, std::span<const TensorSpec> tensors,
                     std::uint64_t most_bytes) {
  return batch_size(sums_of(group, tensors), most_bytes);
}

FrameBatches cut_into_frames(const Group& group, std::span<const TensorSpec> tensors,
                             std::uint64_t most_bytes) {
  const FrameSums sums = sums_of(group, tensors);
  const Shares shares = shares_of(sums, most_bytes);
  FrameBatches result{{}, {}, batch_size(sums, most_bytes).room_bytes};
  result.parts.reserve(sums.count);
  std::uint64_t before = 0;
  std::size_t last = 0;
  for (std::size_t position = 0; position < group.tensors.size(); ++position) {
    const TensorSpec& tensor = tensors[group.tensors[position]];
    for (std::uint64_t offset = 0; offset < tensor.size_bytes; offset += kFrameBytes) {
      const std::uint64_t part = std::min(kFrameBytes, tensor.size_bytes - offset);
      const std::uint64_t usual = usual_frame_bytes(part, tensor.dtype);
      const double middle = static_cast<double>(before) + static_cast<double>(usual) / 2;
      const std::size_t batch = shares.batch_at(middle);
      if (result.batches.empty() || batch != last) {
        result.batches.push_back({result.parts.size(), 0, 0});
      }
      last = batch;
      before += usual;
      ++result.batches.back().part_count;
      result.batches.back().bound_bytes += frame_bound(part) + kEntryBytes;
      result.parts.push_back({position, offset, part});
    }
  }
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

std::vector<GroupFootprint> coded_footprints(std::span<const Group> groups,
                                             std::span<const TensorSpec> tensors,
                                             ComputePlace place, std::uint64_t kept_page_bytes,
                                             std::uint64_t most_bytes) {
  std::vector<GroupFootprint> result = footprints(groups, tensors, place);
  for (std::size_t i = 0; i < groups.size(); ++i) {
    result[i].decodes_frames = result[i].frame_bytes.has_value();
    if (!is_worth_encoding(groups[i], tensors)) continue;
    const std::uint64_t coded = usual_coded_bytes(groups[i], tensors);
    result[i].coded_bytes = coded;
    result[i].coded_copies = batch_size(groups[i], tensors, most_bytes).count;
    result[i].kept_bytes = taken_bytes(coded, kept_page_bytes);
  }
  return result;
}

}  // namespace tensorstream
