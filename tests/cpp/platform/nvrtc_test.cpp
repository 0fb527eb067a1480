#include "platform/nvrtc.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "fake_cuda/fake_cuda.h"
#include "platform/temporary_folder.h"

namespace tensorstream {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const KernelSource kSource = {"some.cu", "__global__ void some() {}", {"-DWIDTH=4"}};

Nvrtc loaded(const NvrtcPlaces& places) { return std::get<Nvrtc>(load_nvrtc(places)); }

NvrtcAbsence absence(const NvrtcPlaces& places) {
  const NvrtcOutcome outcome = load_nvrtc(places);
  if (const auto* const why = std::get_if<NvrtcAbsence>(&outcome)) return *why;
  ADD_FAILURE() << places.library << " loads";
  return {};
}

TEST(NvrtcTest, ALibraryGivenHasEveryEntry) {
  const Nvrtc nvrtc = loaded(FakeCuda::compiler());
#define TS_EXPECT_ENTRY(name, parameters) EXPECT_NE(nvrtc.name, nullptr) << #name;
  TS_NVRTC_ENTRIES(TS_EXPECT_ENTRY)
#undef TS_EXPECT_ENTRY
  EXPECT_EQ(nvrtc.path, FakeCuda::compiler().library);
}

TEST(NvrtcTest, ALibraryThatIsNotThereIsNamedWithWhatToInstall) {
  const NvrtcAbsence why = absence({"/nowhere/libnvrtc.so.13", {}});
  EXPECT_EQ(why.reason, NvrtcAbsence::Reason::kNoLibrary);
  EXPECT_THAT(why.message, AllOf(HasSubstr("/nowhere/libnvrtc.so.13 cannot be opened"),
                                 HasSubstr("install the PyPI package nvidia-cuda-nvrtc")));
}

TEST(NvrtcTest, ALibraryThatIsNoCompilerIsNamed) {
  const NvrtcAbsence why = absence({"libm.so.6", {}});
  EXPECT_EQ(why.reason, NvrtcAbsence::Reason::kNoSymbol);
  EXPECT_THAT(why.message, HasSubstr("libm.so.6 lacks nvrtcVersion"));
}

TEST(NvrtcTest, FoldersAreLookedThroughInTheirOrder) {
  // Whether this machine has a compiler or not: what is in a folder comes before it.
  const TemporaryFolder folder;
  std::filesystem::create_directory(folder.path("empty"));
  std::filesystem::copy_file(FakeCuda::compiler().library, folder.path("libnvrtc.so.12"));
  EXPECT_EQ(loaded({"", {folder.path("empty"), folder.path(".")}}).path,
            folder.path(".") + "/libnvrtc.so.12");
}

TEST(NvrtcTest, CompilesForAnArchitecture) {
  const std::vector<std::byte> cubin =
      compile_cubin(loaded(FakeCuda::compiler()), kSource, "sm_90");
  const std::string_view text(reinterpret_cast<const char*>(cubin.data()), cubin.size());
  EXPECT_THAT(text, HasSubstr("void some()"));
}

TEST(NvrtcTest, AnErrorHasTheCompilersLog) {
  const Nvrtc nvrtc = loaded(FakeCuda::compiler());
  try {
    compile_cubin(nvrtc, {"broken.cu", "no kernel", {}}, "sm_90");
    FAIL() << "compiles";
  } catch (const CudaError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("broken.cu: nvrtcCompileProgram of " + nvrtc.path),
                                    HasSubstr("error 6:\nthe fake compiler found no kernel")));
    EXPECT_EQ(error.call(), "nvrtcCompileProgram");
    EXPECT_EQ(error.result(), 6);
    EXPECT_THAT(error.where().file_name(), HasSubstr("nvrtc_test.cpp"));
  }
  EXPECT_THROW(compile_cubin(nvrtc, kSource, "of nothing"), CudaError);
}

}  // namespace
}  // namespace tensorstream
