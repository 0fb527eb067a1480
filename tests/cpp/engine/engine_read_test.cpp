// Reads outside leases: whole tensors, rows, comparisons, wherever the tensor is.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "engine/open_engine.h"
#include "engine/test_model.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kRowBytes = 50;
constexpr std::uint64_t kRows = 240;

enum class Source { kMemory, kPieces };

/// Group 0 is resident, 1 on demand, the others streamed; each has one tensor of kRows rows.
class EngineRead : public ::testing::TestWithParam<Source> {
 protected:
  EngineRead() {
    model_.add_group({kRows * kRowBytes}, Residency::kRequired);
    model_.add_group({kRows * kRowBytes}, Residency::kByRows);
    for (int i = 0; i < 3; ++i) model_.add_group({kRows * kRowBytes});
    const ModelSpec spec =
        GetParam() == Source::kMemory ? model_.in_memory() : model_.in_pieces(folder_);
    engine_ = open_engine(*device_, spec, smallest_budget_of(spec));
  }

  Bytes row(TensorId tensor, std::uint64_t index) const {
    const auto begin =
        model_.bytes(tensor)->begin() + static_cast<std::ptrdiff_t>(index * kRowBytes);
    return {begin, begin + static_cast<std::ptrdiff_t>(kRowBytes)};
  }

  const TemporaryFolder folder_;
  TestModel model_;
  const std::unique_ptr<Device> device_ = checking_device();
  std::unique_ptr<Engine> engine_;
};

TEST_P(EngineRead, HasATensorOfEveryPlacement) {
  EXPECT_EQ(engine_->plan().groups[0].placement, Placement::kResident);
  EXPECT_EQ(engine_->plan().groups[1].placement, Placement::kOnDemand);
  EXPECT_EQ(engine_->plan().groups[2].placement, Placement::kStreamed);
}

TEST_P(EngineRead, WholeTensors) {
  for (TensorId id = 0; id < model_.tensor_count(); ++id) {
    Bytes out(kRows * kRowBytes);
    engine_->read_tensor(id, out);
    EXPECT_EQ(out, *model_.bytes(id)) << "tensor " << id;
  }
  EXPECT_EQ(engine_->statistics().on_demand_bytes, 5 * kRows * kRowBytes);
}

TEST_P(EngineRead, RowsInAnyOrderAndMoreThanOnce) {
  const std::vector<std::int64_t> indices = {239, 0, 7, 7, 120, 0};
  for (TensorId id = 0; id < model_.tensor_count(); ++id) {
    Bytes out(indices.size() * kRowBytes);
    engine_->read_rows(id, indices, kRowBytes, out);
    Bytes expected;
    for (const std::int64_t index : indices) {
      const Bytes one = row(id, static_cast<std::uint64_t>(index));
      expected.insert(expected.end(), one.begin(), one.end());
    }
    EXPECT_EQ(out, expected) << "tensor " << id;
  }
  EXPECT_EQ(engine_->statistics().on_demand_bytes, 5 * indices.size() * kRowBytes);
}

TEST_P(EngineRead, NoRows) {
  engine_->read_rows(1, {}, kRowBytes, {});
  EXPECT_EQ(engine_->statistics().on_demand_bytes, 0U);
}

TEST_P(EngineRead, RowsOutsideTheTensorAreRefused) {
  Bytes out(2 * kRowBytes);
  for (TensorId id = 0; id < 3; ++id) {
    for (const std::int64_t wrong :
         {std::int64_t{kRows}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::max(),
          std::numeric_limits<std::int64_t>::min()}) {
      const std::vector<std::int64_t> indices = {3, wrong};
      EXPECT_THROW(engine_->read_rows(id, indices, kRowBytes, out), ConfigError)
          << "tensor " << id << ", row " << wrong;
    }
  }
}

TEST_P(EngineRead, SizesThatDoNotFitAreRefused) {
  Bytes out(kRows * kRowBytes);
  const std::vector<std::int64_t> two = {0, 1};
  for (TensorId id = 0; id < 3; ++id) {
    EXPECT_THROW(engine_->read_tensor(id, std::span(out).first(out.size() - 1)), ConfigError);
    Bytes larger(out.size() + 1);
    EXPECT_THROW(engine_->read_tensor(id, larger), ConfigError);
    EXPECT_THROW(static_cast<void>(engine_->tensor_equals(id, larger)), ConfigError);
    EXPECT_THROW(engine_->read_rows(id, two, kRowBytes, std::span(out).first(kRowBytes)),
                 ConfigError);
    EXPECT_THROW(engine_->read_rows(id, two, 0, {}), ConfigError);
    EXPECT_THROW(engine_->read_rows(id, two, 49, std::span(out).first(98)), ConfigError);
    EXPECT_THROW(engine_->read_rows(id, two, std::uint64_t{1} << 63U, {}), ConfigError);
  }
}

TEST_P(EngineRead, TensorsThatThereAreNotAreRefused) {
  Bytes out(1);
  EXPECT_THROW(engine_->read_tensor(5, out), ConfigError);
  EXPECT_THROW(engine_->read_rows(5, std::vector<std::int64_t>{0}, 1, out), ConfigError);
  EXPECT_THROW(static_cast<void>(engine_->tensor_equals(5, out)), ConfigError);
  EXPECT_THROW(engine_->replace_tensor(5, out, nullptr), ConfigError);
}

TEST_P(EngineRead, ComparisonsSeeEveryByte) {
  for (TensorId id = 0; id < model_.tensor_count(); ++id) {
    Bytes bytes = *model_.bytes(id);
    EXPECT_TRUE(engine_->tensor_equals(id, bytes));
    for (const std::size_t at : {std::size_t{0}, std::size_t{6001}, bytes.size() - 1}) {
      bytes[at] ^= std::byte{0x80};
      EXPECT_FALSE(engine_->tensor_equals(id, bytes)) << "tensor " << id << ", byte " << at;
      bytes[at] ^= std::byte{0x80};
    }
  }
}

TEST_P(EngineRead, ReadsLeaveLeasesAndPlacesAlone) {
  Stream& stream = device_->caller_stream();
  Computation computation(*engine_, model_);
  ASSERT_TRUE(engine_->acquire(2, stream));
  Bytes out(kRows * kRowBytes);
  for (const TensorId id : {3U, 4U, 2U}) {
    engine_->read_tensor(id, out);
    EXPECT_EQ(out, *model_.bytes(id));
  }
  computation.compute(2, stream);
  engine_->release(2, stream);
  EXPECT_EQ(computation.right(), 1U);
  EXPECT_EQ(engine_->statistics().acquires, 1U);
}

TEST(EngineReadLarge, ComparisonsOfLargeTensorsSeeTheirEnd) {
  TestModel model;
  model.add_group({2_MiB + 3}, Residency::kByRows);
  const auto device = checking_device();
  const auto engine = open_engine(*device, model.in_memory(), 4096);
  Bytes bytes = *model.bytes(0);
  EXPECT_TRUE(engine->tensor_equals(0, bytes));
  bytes.back() ^= std::byte{1};
  EXPECT_FALSE(engine->tensor_equals(0, bytes));
}

std::string source_name(const ::testing::TestParamInfo<Source>& source) {
  return source.param == Source::kMemory ? "Memory" : "Pieces";
}

INSTANTIATE_TEST_SUITE_P(Sources, EngineRead, ::testing::Values(Source::kMemory, Source::kPieces),
                         source_name);

}  // namespace
}  // namespace tensorstream
