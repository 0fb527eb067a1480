#include "platform/cufile.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <variant>

#include "fake_cuda/fake_cuda.h"
#include "made_bytes/weights.h"
#include "platform/file.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class CufileTest : public ::testing::Test {
 protected:
  CufileTest() { fake_.reset(); }

  static Cufile opened() { return std::get<Cufile>(open_cufile(FakeCuda::cufile())); }
  static CufileAbsence absence(const LibraryPlaces& places) {
    const CufileOutcome outcome = open_cufile(places);
    if (const auto* const why = std::get_if<CufileAbsence>(&outcome)) return *why;
    ADD_FAILURE() << places.library << " opens";
    return {};
  }
  CufileMode mode(int version, unsigned int control_flags, unsigned int feature_flags) const {
    fake_.set("cufile_nvidia_fs_version", version);
    fake_.set("cufile_control_flags", control_flags);
    fake_.set("cufile_feature_flags", feature_flags);
    return mode_of(opened().properties);
  }

  const FakeCuda fake_;
};

TEST_F(CufileTest, HasEveryEntryAndItsDriverIsOpen) {
  const Cufile cufile = opened();
#define TS_EXPECT_ENTRY(result, name, parameters) EXPECT_NE(cufile.name, nullptr) << #name;
  TS_CUFILE_ENTRIES(TS_EXPECT_ENTRY)
#undef TS_EXPECT_ENTRY
  EXPECT_EQ(cufile.path, FakeCuda::path());
  EXPECT_EQ(fake_.calls("cuFileDriverOpen"), 1);
}

TEST_F(CufileTest, ADriverThatAnotherOpenedIsOpen) {
  fake_.fail("cuFileDriverOpen", 1, static_cast<int>(CufileResult::kDriverAlreadyOpen));
  EXPECT_EQ(opened().path, FakeCuda::path());
}

TEST_F(CufileTest, ALibraryThatIsNotThereIsNamedWithWhatToInstall) {
  const CufileAbsence why = absence({"/nowhere/libcufile.so.0", {}});
  EXPECT_EQ(why.reason, CufileAbsence::Reason::kNoLibrary);
  EXPECT_THAT(why.message, AllOf(HasSubstr("/nowhere/libcufile.so.0 cannot be opened"),
                                 HasSubstr("install the PyPI package nvidia-cufile")));
}

TEST_F(CufileTest, ALibraryThatIsNoCufileIsNamed) {
  const CufileAbsence why = absence({FakeCuda::incomplete_path(), {}});
  EXPECT_EQ(why.reason, CufileAbsence::Reason::kNoSymbol);
  EXPECT_THAT(why.message, HasSubstr("lacks cuFileDriverOpen"));
}

TEST_F(CufileTest, ADriverThatDoesNotOpenIsNamedWithWhatToDo) {
  fake_.fail("cuFileDriverOpen", 1, static_cast<int>(CufileResult::kDriverNotInitialized));
  const CufileAbsence why = absence(FakeCuda::cufile());
  EXPECT_EQ(why.reason, CufileAbsence::Reason::kOpenFailed);
  EXPECT_THAT(why.message, AllOf(HasSubstr("cuFileDriverOpen"), HasSubstr("5001 (nvidia-fs is not"),
                                 HasSubstr("CUFILE_ALLOW_COMPAT_MODE=true")));
  fake_.fail("cuFileDriverGetProperties", 1, 5099);
  EXPECT_THAT(absence(FakeCuda::cufile()).message,
              AllOf(HasSubstr("cuFileDriverGetProperties"), HasSubstr("5099 (a result without")));
}

TEST_F(CufileTest, ReadsAreFromPeerToPeerWhereNothingElseIsAllowed) {
  const CufileMode by_fs = mode(2, 0, 0);
  EXPECT_TRUE(by_fs.is_peer_to_peer);
  EXPECT_EQ(by_fs.about, "from peer to peer by nvidia-fs 2.24");
  EXPECT_TRUE(mode(2, kCufilePollMode, 0).is_peer_to_peer);
  const CufileMode by_peers = mode(0, 0, kCufilePeerToPeerFeature);
  EXPECT_TRUE(by_peers.is_peer_to_peer);
  EXPECT_EQ(by_peers.about, "from peer to peer by PCI peer to peer");
}

TEST_F(CufileTest, WhereReadsMayGoThroughHostMemoryThatIsNoProof) {
  const CufileMode compatible = mode(0, kCufileCompatibilityMode, 0);
  EXPECT_FALSE(compatible.is_peer_to_peer);
  EXPECT_THAT(compatible.about, AllOf(HasSubstr("compatibility mode, as nvidia-fs is not loaded"),
                                      HasSubstr("through host memory")));
  // Modes that this library does not know are none that it trusts.
  for (const unsigned int flag : {kCufileCompatibilityMode, 1U << 2U, 1U << 4U, 1U << 9U}) {
    const CufileMode allowed = mode(2, flag, kCufilePeerToPeerFeature);
    EXPECT_FALSE(allowed.is_peer_to_peer);
    EXPECT_THAT(allowed.about, HasSubstr("compatibility mode is allowed beside nvidia-fs 2.24"));
  }
  EXPECT_FALSE(mode(0, 0, 0).is_peer_to_peer);
}

TEST_F(CufileTest, ARefusalNamesTheRecordOfUdevThatIsMissing) {
  const TemporaryFolder folder;
  // A file that no disk has.
  const File file = File::open_for_reading("/proc/self/status");
  const std::string what = cufile_refusal(file, {CufileResult::kInternalError, 0}).what();
  EXPECT_THAT(what, AllOf(HasSubstr("'/proc/self/status' cannot be read by cuFile"),
                          HasSubstr("5030 (internal error)"), HasSubstr("/run/udev/data/b0:"),
                          HasSubstr("backend=\"direct\""), Not(HasSubstr("CUDA driver"))));
  EXPECT_THAT(cufile_refusal(file, {CufileResult::kCudaDriverError, 201}).what(),
              HasSubstr("5011 (the CUDA driver failed), result 201 of the CUDA driver"));
}

TEST_F(CufileTest, AnErrorOfAReadHasFileOffsetAndLength) {
  const TemporaryFolder folder;
  const File file = File::open_for_reading(folder.write("a.bin", patterned_bytes(100)));
  const CufileError error = cufile_read_error(file, 40, 20, CufileResult::kIoError);
  EXPECT_EQ(error.read().path, file.path());
  EXPECT_EQ(error.read().offset_bytes, 40U);
  EXPECT_EQ(error.read().size_bytes, 20U);
  EXPECT_EQ(error.read().result, 5044);
  EXPECT_THAT(error.what(), AllOf(HasSubstr("read of 20 B at offset 40 of '" + file.path()),
                                  HasSubstr("5044 (the read failed)"), HasSubstr("cufile.log")));
}

}  // namespace
}  // namespace tensorstream
