#include "engine/frame_batches.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <vector>

#include "base/units.h"
#include "codec/compression_level.h"
#include "codec/device_decoder.h"
#include "codec/frame_format.h"
#include "engine/batch_choice.h"
#include "engine/decode_ring.h"

namespace tensorstream {
namespace {

/// Groups of tensors of a type; where nothing else is said, a block of a 7B model in four.
struct Weights {
  std::vector<TensorSpec> tensors;
  std::vector<Group> groups;

  void add(const std::vector<std::uint64_t>& sizes, Dtype dtype = Dtype::kBf16) {
    Group group;
    for (const std::uint64_t size : sizes) {
      group.tensors.push_back(static_cast<TensorId>(tensors.size()));
      TensorSpec tensor;
      tensor.dtype = dtype;
      tensor.size_bytes = size;
      tensors.push_back(tensor);
    }
    groups.push_back(group);
  }
  std::uint64_t copies(std::uint64_t most_bytes) const {
    std::uint64_t copies = 0;
    for (const Group& group : groups) copies += batch_size(group, tensors, most_bytes).count;
    return copies;
  }
  std::uint64_t best(std::uint64_t budget_bytes) const {
    return best_batch_bytes(groups, tensors, 16_MiB, budget_bytes);
  }
  std::uint64_t best_ring(std::uint64_t budget_bytes) const {
    return DecodeRing::size_bytes_for(largest_batch_bytes(groups, tensors, best(budget_bytes)));
  }
};

Weights llama_7b_weights() {
  Weights weights;
  for (int block = 0; block < 32; ++block) {
    weights.add({32_MiB, 32_MiB, 32_MiB, 32_MiB});
    for (int matrix = 0; matrix < 3; ++matrix) weights.add({86_MiB});
  }
  return weights;
}

std::uint64_t usual_bytes(const FramePart& part, Dtype dtype) {
  return static_cast<std::uint64_t>(static_cast<double>(part.size_bytes) * usual_ratio(dtype)) +
         kFrameAlignment + sizeof(BatchedFrame);
}

TEST(FrameBatches, EveryByteIsInOneFrameAndEveryFrameInOneBatch) {
  std::mt19937_64 random(3);
  for (int round = 0; round < 1000; ++round) {
    Weights weights;
    std::vector<std::uint64_t> sizes;
    for (std::uint64_t count = 1 + random() % 6; count > 0; --count) {
      sizes.push_back(random() % 3 == 0 ? random() % 5000 : random() % 40_MiB);
    }
    const Dtype dtype = round % 2 == 0 ? Dtype::kBf16 : Dtype::kF32;
    weights.add(sizes, dtype);
    const std::uint64_t most = batch_limit(random() % 64_MiB);
    const BatchSize size = batch_size(weights.groups[0], weights.tensors, most);
    const FrameBatches cut = cut_into_frames(weights.groups[0], weights.tensors, most);
    std::vector<std::uint64_t> covered(sizes.size(), 0);
    for (const FramePart& part : cut.parts) {
      EXPECT_EQ(part.offset_bytes, covered[part.position]);
      EXPECT_LE(part.size_bytes, kFrameBytes);
      covered[part.position] += part.size_bytes;
    }
    EXPECT_EQ(covered, sizes);
    EXPECT_EQ(cut.room_bytes, size.room_bytes);
    EXPECT_LE(cut.room_bytes, most);
    EXPECT_LE(cut.batches.size(), size.count);
    std::size_t next = 0;
    for (const FrameBatch& batch : cut.batches) {
      ASSERT_EQ(batch.first_part, next);
      ASSERT_GT(batch.part_count, 0U);
      std::uint64_t usual = 0;
      for (; next < batch.first_part + batch.part_count; ++next) {
        usual += usual_bytes(cut.parts[next], dtype);
      }
      const bool holds_several = most >= 8_MiB;
      EXPECT_TRUE(!holds_several || usual <= cut.room_bytes) << usual;
    }
    EXPECT_EQ(next, cut.parts.size());
  }
}

/// Their coded bytes are what a slot has room for, not those of their weights.
TEST(FrameBatches, ABatchIsAsManyWeightsAsASlotHoldsCoded) {
  Weights weights;
  weights.add({24_MiB});
  const FrameBatches cut = cut_into_frames(weights.groups[0], weights.tensors, batch_limit(17_MiB));
  ASSERT_EQ(cut.batches.size(), 1U);
  EXPECT_GT(cut.batches[0].bound_bytes, 24_MiB);
  EXPECT_LT(cut.room_bytes, 17_MiB);
}

/// Attention's 8,192 chunks, in two: a wave is 3,168, and two of 4,096 were two waves each.
TEST(FrameBatches, BatchesAreWholeWavesWhereTheseAreFewer) {
  const Weights weights = llama_7b_weights();
  const auto frames_of = [&](const Group& group) {
    std::vector<std::size_t> frames;
    for (const FrameBatch& batch :
         cut_into_frames(group, weights.tensors, weights.best(4_GiB)).batches) {
      frames.push_back(batch.part_count);
    }
    return frames;
  };
  EXPECT_EQ(frames_of(weights.groups[0]), (std::vector<std::size_t>{40, 24}));
  EXPECT_EQ(frames_of(weights.groups[1]), std::vector<std::size_t>{43});

  Weights wide;  // 129 frames in three of two waves: one wave would leave 81 for the first
  wide.add({86_MiB, 86_MiB, 86_MiB});
  const FrameBatches cut = cut_into_frames(wide.groups[0], wide.tensors, 62_MiB);
  ASSERT_EQ(cut.batches.size(), 3U);
  for (const FrameBatch& batch : cut.batches) EXPECT_EQ(batch.part_count, 43U);
}

/// Elements make chunks, of four bytes half as many.
TEST(FrameBatches, WavesOfWiderElementsAreMoreBytes) {
  Weights weights;
  weights.add({128_MiB},
              Dtype::kF32);  // 64 frames of 64 chunks: a wave each, where bf16 has 40 and 24
  const FrameBatches cut = cut_into_frames(weights.groups[0], weights.tensors, 80_MiB);
  ASSERT_EQ(cut.batches.size(), 2U);
  EXPECT_EQ(cut.batches[0].part_count, 32U);
}

TEST(FrameBatches, NoTensorsAndEmptyOnesAreNoBatches) {
  Weights weights;
  weights.add({});
  weights.add({0, 0});
  for (const Group& group : weights.groups) {
    EXPECT_TRUE(cut_into_frames(group, weights.tensors, batch_limit(16_MiB)).batches.empty());
    EXPECT_EQ(batch_size(group, weights.tensors, batch_limit(16_MiB)).count, 0U);
  }
}

/// 18 copies a block in a small budget; 13 and fewer where the ring has room.
TEST(BatchChoice, CopiesAreFewerWhereTheRingMayBeLarger) {
  const Weights weights = llama_7b_weights();
  EXPECT_EQ(weights.best(0), batch_limit(16_MiB));
  EXPECT_EQ(weights.best(500_MiB), batch_limit(16_MiB));
  EXPECT_LE(weights.copies(weights.best(0)), 32U * 18);
  EXPECT_LE(weights.copies(weights.best(1280_MiB)), 32U * 13);
  EXPECT_LE(weights.copies(weights.best(4_GiB)), 32U * 9);
  for (const std::uint64_t budget : {700_MiB, 1280_MiB, 4_GiB, 40_GiB}) {
    EXPECT_LE(weights.best_ring(budget), std::max(weights.best_ring(0), budget / 24));
    EXPECT_LE(weights.best_ring(budget), 128_MiB);
    EXPECT_LE(weights.copies(weights.best(budget)), weights.copies(weights.best(0)));
  }
}

/// A few weights more in the budget are worth more than a copy less.
TEST(BatchChoice, ARingIsNoLargerThanItsCopiesAreWorth) {
  Weights weights;
  weights.add({86_MiB});
  EXPECT_EQ(weights.best(40_GiB), batch_limit(16_MiB));
}

}  // namespace
}  // namespace tensorstream
