#include "engine/encoded_home.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "base/units.h"
#include "device/host_device.h"
#include "engine/batch_choice.h"
#include "engine/frame_batches.h"
#include "engine/group_layout.h"
#include "io/reader.h"
#include "made_bytes/weights.h"
#include "memory/budget.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

/// A group of one tensor of bf16 weights in RAM, and homes of it in batches cut to `batch_bytes`.
class EncodedHomes {
 public:
  EncodedHomes(std::uint64_t size_bytes, std::uint64_t batch_bytes)
      : EncodedHomes(gaussian_weights(Dtype::kBf16, size_bytes / 2, 0.02), batch_bytes) {}
  EncodedHomes(Bytes weights, std::uint64_t batch_bytes)
      : weights_(std::make_shared<Bytes>(std::move(weights))),
        batch_bytes_(batch_bytes),
        tensors_(1),
        groups_(1) {
    tensors_[0].name = "w";
    tensors_[0].dtype = Dtype::kBf16;
    tensors_[0].size_bytes = weights_->size();
    groups_[0].name = "group";
    groups_[0].tensors = {0};
    layout_ = lay_out(groups_[0], tensors_, ComputePlace::kAccelerator);
    extents_ = {{{create_memory_reader("memory", *weights_, weights_), 0, weights_->size()}}};
  }

  std::shared_ptr<EncodedHome> make(std::uint64_t slot_bytes,
                                    std::shared_ptr<Budget> budget = nullptr) const {
    return make_encoded_home(*device_, {groups_[0], layout_, tensors_, extents_},
                             {CompressionLevel(1), batch_bytes_, slot_bytes, std::move(budget)});
  }
  std::uint64_t usual_slot_bytes() const {
    return largest_batch_bytes(groups_, tensors_, batch_bytes_);
  }
  std::uint64_t scratch_bytes() const {
    return largest_scratch_bytes(groups_, tensors_, batch_bytes_);
  }

 private:
  const std::unique_ptr<Device> device_ = create_host_device();
  const std::shared_ptr<Bytes> weights_;
  const std::uint64_t batch_bytes_;
  std::vector<TensorSpec> tensors_;
  std::vector<Group> groups_;
  GroupLayout layout_;
  std::vector<std::vector<BoundExtent>> extents_;
};

TEST(EncodedHome, NoBatchIsLargerThanASlot) {
  const EncodedHomes homes(20_MiB, batch_limit(16_MiB));
  EXPECT_EQ(homes.make(homes.usual_slot_bytes())->batches().size(), 1U);
  for (const std::uint64_t slot : {12_MiB, 5_MiB, 3_MiB}) {
    const auto home = homes.make(slot);
    EXPECT_GT(home->batches().size(), 1U);
    for (const EncodedHome::Batch& batch : home->batches()) EXPECT_LE(batch.bytes.size(), slot);
  }
}

/// Threads that find no memory to encode a second batch in leave the budget to the home.
TEST(EncodedHome, ABudgetOfAHomeAndMemoryForOneBatchSuffices) {
  const EncodedHomes homes(30_MiB, batch_limit(5_MiB));
  const std::uint64_t slot = homes.usual_slot_bytes();
  const std::uint64_t held = align_up(homes.make(slot)->held_bytes(), 4096);
  // A home is expected to take a little more than it does.
  const auto budget = Budget::create(held + held / 64 + 1_MiB + homes.scratch_bytes());
  for (int i = 0; i < 5; ++i) {
    std::shared_ptr<EncodedHome> home;
    ASSERT_NO_THROW(home = homes.make(slot, budget));
    EXPECT_EQ(align_up(home->held_bytes(), 4096), held);
  }
}

/// Weights that no code makes shorter take more than is usual.
TEST(EncodedHome, MemoryForASecondBatchTakesNoneOfWhatIsToBeStored) {
  const EncodedHomes homes(random_bytes(30_MiB), batch_limit(5_MiB));
  const std::uint64_t slot = homes.usual_slot_bytes();
  const std::uint64_t held = align_up(homes.make(slot)->held_bytes(), 4096);
  for (std::uint64_t i = 0; i < 8; ++i) {
    const std::uint64_t room = homes.scratch_bytes() * (8 + i) / 8;
    const auto budget = Budget::create(held + 1_MiB + room);
    ASSERT_NO_THROW(homes.make(slot, budget)) << room;
  }
}

}  // namespace
}  // namespace tensorstream
