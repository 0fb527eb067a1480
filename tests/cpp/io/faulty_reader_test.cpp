#include "io/faulty_reader.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "base/clock.h"
#include "made_bytes/weights.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

class FaultyReaderTest : public ::testing::Test {
 protected:
  std::unique_ptr<FaultyReader> reader(const Faults& faults) const {
    return std::make_unique<FaultyReader>(create_memory_reader("memory of 'w'", *bytes_, bytes_),
                                          faults);
  }

  const std::shared_ptr<const std::vector<std::byte>> bytes_ =
      std::make_shared<std::vector<std::byte>>(patterned_bytes(1000));
  std::vector<std::byte> out_ = std::vector<std::byte>(100);
};

TEST_F(FaultyReaderTest, FailsTheReadItWasToldToAndNoOther) {
  const auto faulty = reader({.failing_read = 2});
  EXPECT_NO_THROW(faulty->read(0, out_));
  try {
    faulty->read(300, out_);
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), EIO);
    EXPECT_EQ(error.offset_bytes(), 300U);
  }
  EXPECT_NO_THROW(faulty->read(300, out_));
  EXPECT_EQ(faulty->reads(), 3);
}

TEST_F(FaultyReaderTest, EndsEarlyAfterTheBytesBeforeTheEnd) {
  const auto faulty = reader({.ends_at_bytes = 450});
  EXPECT_EQ(faulty->size_bytes(), 1000U);
  EXPECT_NO_THROW(faulty->read(350, out_));
  EXPECT_THROW(faulty->read(600, out_), IoError);
  EXPECT_THROW(faulty->read(400, out_), IoError);
  EXPECT_TRUE(std::equal(out_.begin(), out_.begin() + 50, bytes_->begin() + 400));
}

TEST_F(FaultyReaderTest, TakesItsTime) {
  const auto faulty = reader({.delay = std::chrono::milliseconds(5)});
  const auto start = Clock::now();
  faulty->read(0, out_);
  EXPECT_GE(seconds_since(start), 0.005);
  EXPECT_TRUE(std::equal(out_.begin(), out_.end(), bytes_->begin()));
}

TEST_F(FaultyReaderTest, HidesTheAddressSoThatReadsAreSeen) {
  EXPECT_EQ(reader({})->address(0), nullptr);
}

}  // namespace
}  // namespace tensorstream
