#include "platform/cuda_driver.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "fake_cuda/fake_cuda.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaDriverTest : public ::testing::Test {
 protected:
  CudaDriverTest() { fake_.reset(); }

  static CudaDriver loaded() { return std::get<CudaDriver>(load_cuda_driver(FakeCuda::path())); }
  static CudaDriverAbsence absence(const std::string& path) {
    const CudaDriverOutcome outcome = load_cuda_driver(path);
    if (const auto* const why = std::get_if<CudaDriverAbsence>(&outcome)) return *why;
    ADD_FAILURE() << path << " loads";
    return {};
  }

  const FakeCuda fake_;
};

TEST_F(CudaDriverTest, HasEveryEntryAndIsInitialised) {
  const CudaDriver driver = loaded();
#define TS_EXPECT_ENTRY(name, parameters) EXPECT_NE(driver.name, nullptr) << #name;
  TS_CUDA_DRIVER_ENTRIES(TS_EXPECT_ENTRY)
#undef TS_EXPECT_ENTRY
  EXPECT_EQ(driver.version, 12040);
  int count = 0;
  EXPECT_EQ(driver.cuDeviceGetCount(&count), CudaResult::kSuccess);
  EXPECT_EQ(count, 1);
}

TEST_F(CudaDriverTest, ALibraryThatIsNotThereIsNamedWithTheLoadersWords) {
  const CudaDriverAbsence why = absence("libcuda-of-nobody.so.1");
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kNoLibrary);
  EXPECT_THAT(why.message, AllOf(HasSubstr("libcuda-of-nobody.so.1"), HasSubstr("No such file"),
                                 HasSubstr("install the NVIDIA driver")));
}

TEST_F(CudaDriverTest, AnEntryThatIsMissingIsNamed) {
  const CudaDriverAbsence why = absence(FakeCuda::incomplete_path());
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kNoSymbol);
  EXPECT_THAT(why.message, AllOf(HasSubstr(FakeCuda::incomplete_path()), HasSubstr("lacks cuInit"),
                                 HasSubstr("update the NVIDIA driver")));
}

TEST_F(CudaDriverTest, ALibraryThatIsNoDriverIsNamed) {
  const CudaDriverAbsence why = absence("libm.so.6");
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kNoSymbol);
  EXPECT_THAT(why.message, HasSubstr("lacks cuDriverGetVersion"));
}

TEST_F(CudaDriverTest, ADriverThatIsTooOldIsNamedWithBothVersions) {
  fake_.set("driver_version", 11080);
  const CudaDriverAbsence why = absence(FakeCuda::path());
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kTooOld);
  EXPECT_THAT(why.message,
              AllOf(HasSubstr("11.8"), HasSubstr("12.0"), HasSubstr("update the driver")));
  EXPECT_EQ(fake_.calls("cuInit"), 0);
  fake_.set("driver_version", 12000);
  EXPECT_EQ(loaded().version, 12000);
}

TEST_F(CudaDriverTest, AVersionThatIsNotToldIsAnAbsence) {
  fake_.fail("cuDriverGetVersion", 1, CudaResult::kInvalidValue);
  const CudaDriverAbsence why = absence(FakeCuda::path());
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kInitFailed);
  EXPECT_THAT(why.message, HasSubstr("error 1"));
}

TEST_F(CudaDriverTest, AnInitThatFailsIsNamedWithItsResult) {
  fake_.set("init_result", static_cast<int>(CudaResult::kOperatingSystem));
  const CudaDriverAbsence why = absence(FakeCuda::path());
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kInitFailed);
  EXPECT_THAT(why.message, AllOf(HasSubstr("cuInit"), HasSubstr("12.4"),
                                 HasSubstr("CUDA_ERROR_OPERATING_SYSTEM (304: ")));
}

TEST_F(CudaDriverTest, AnInitWithoutDevicesSaysSo) {
  fake_.set("init_result", static_cast<int>(CudaResult::kNoDevice));
  const CudaDriverAbsence why = absence(FakeCuda::path());
  EXPECT_EQ(why.reason, CudaDriverAbsence::Reason::kNoDevice);
  EXPECT_THAT(why.message, HasSubstr("CUDA_VISIBLE_DEVICES"));
}

TEST_F(CudaDriverTest, TheSystemsDriverIsLoadedOnce) {
  EXPECT_EQ(&system_cuda_driver(), &system_cuda_driver());
  const auto* const why = std::get_if<CudaDriverAbsence>(&system_cuda_driver());
  EXPECT_TRUE(why == nullptr || !why->message.empty());
}

TEST_F(CudaDriverTest, AnErrorNamesTheObjectTheCallTheResultAndWhatToDo) {
  const CudaError error = cuda_error(loaded(), CudaResult::kInvalidHandle,
                                     {"cuMemcpyHtoDAsync_v2", "device cuda:3", 4U << 20U});
  EXPECT_STREQ(error.what(),
               "device cuda:3: cuMemcpyHtoDAsync_v2 of 4.00 MiB failed: CUDA_ERROR_INVALID_HANDLE "
               "(400: the fake driver says so); a stream or event is gone, or is another device's");
  EXPECT_EQ(error.call(), "cuMemcpyHtoDAsync_v2");
  EXPECT_EQ(error.result(), 400);
  EXPECT_THAT(error.where().file_name(), HasSubstr("cuda_driver_test.cpp"));
}

TEST_F(CudaDriverTest, AResultThatTheDriverDoesNotKnowHasItsNumber) {
  EXPECT_EQ(describe_result(loaded(), CudaResult{12345}), "a result without a name (12345)");
}

TEST_F(CudaDriverTest, ALostContextAsksForARestart) {
  for (const CudaResult lost : {CudaResult::kIllegalAddress, CudaResult::kLaunchFailed,
                                CudaResult::kEccUncorrectable, CudaResult::kContained}) {
    EXPECT_TRUE(loses_context(lost));
    EXPECT_THAT(cuda_error(loaded(), lost, {"cuEventQuery", "device cuda:0"}).what(),
                AllOf(HasSubstr("context is lost"), HasSubstr("restart the process")));
  }
  for (const CudaResult other : {CudaResult::kSuccess, CudaResult::kNotReady,
                                 CudaResult::kOutOfMemory, CudaResult::kInvalidValue}) {
    EXPECT_FALSE(loses_context(other));
  }
}

}  // namespace
}  // namespace tensorstream
