// The kernel's text for the compiler of this machine, where it has one. No GPU is needed.
#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <variant>

#include "device/gpu_required.h"
#include "device/real_cuda.h"
#include "kernels/frame_decode.h"

namespace tensorstream {
namespace {

TEST(FrameDecodeText, HasItsPartsInOrder) {
  const std::string text = frame_decode_source().text;
  EXPECT_LT(text.find("sum_before("), text.find("look_up_symbols("));
  EXPECT_LT(text.find("look_up_symbols("), text.find(kFrameDecodeKernel));
  EXPECT_NE(text.find(kFrameDecodeKernel), std::string::npos);
  EXPECT_EQ(text.find("#include"), std::string::npos);
}

class RealNvrtc : public ::testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    outcome_ = load_nvrtc(real_compiler());
    const auto* const absence = std::get_if<NvrtcAbsence>(&outcome_);
    if (absence == nullptr) return;
    if (gpu_is_required()) FAIL() << absence->message;
    GTEST_SKIP() << absence->message;
  }

  NvrtcOutcome outcome_;
};

TEST_P(RealNvrtc, CompilesEachShape) {
  for (const FrameDecodeShape& shape :
       {FrameDecodeShape{}, FrameDecodeShape{4, 5}, FrameDecodeShape{2, 12}}) {
    const auto cubin =
        compile_cubin(std::get<Nvrtc>(outcome_), frame_decode_source(shape), GetParam());
    const std::string_view elf(reinterpret_cast<const char*>(cubin.data()), cubin.size());
    EXPECT_TRUE(elf.starts_with("\177ELF"));
    EXPECT_NE(elf.find(kFrameDecodeKernel), std::string_view::npos);
  }
}

INSTANTIATE_TEST_SUITE_P(Architectures, RealNvrtc, ::testing::Values("sm_80", "sm_89", "sm_90"),
                         [](const auto& instance) { return std::string(instance.param); });

}  // namespace
}  // namespace tensorstream
