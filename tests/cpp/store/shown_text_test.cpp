#include "store/shown_text.h"

#include <gtest/gtest.h>

#include <string>

namespace tensorstream::testing {
namespace {

using namespace std::string_literals;

TEST(ShownText, LeavesOrdinaryTextAlone) {
  EXPECT_EQ(shown("model.layers.0.\xC3\xA9"), "model.layers.0.\xC3\xA9");
  EXPECT_EQ(shown(std::string(200, 'x')), std::string(200, 'x'));
}

TEST(ShownText, EscapesControlCharacters) {
  EXPECT_EQ(shown("a\0b\n\x1B[31m\x7F"s), "a\\x00b\\x0a\\x1b[31m\\x7f");
}

TEST(ShownText, EscapesWhatIsNotUtf8) {
  EXPECT_EQ(shown("a\xFF\xC3"), "a\\xff\\xc3");
  EXPECT_EQ(shown("\xC3\xA9\xC3(\xE2\x82\xAC\xE2\x82"), "\xC3\xA9\\xc3(\xE2\x82\xAC\\xe2\\x82");
  EXPECT_EQ(shown("\xC0\x80 \xED\xA0\x80"), "\\xc0\\x80 \\xed\\xa0\\x80");
  EXPECT_EQ(shown("\xF0\x9F\x98\x80\xF4\x90\x80\x80"), "\xF0\x9F\x98\x80\\xf4\\x90\\x80\\x80");
}

TEST(ShownText, CutsLongTextToItsEnds) {
  const std::string text = "start" + std::string(10'000, 'x') + "end";
  EXPECT_EQ(shown(text), "start" + std::string(85, 'x') + "..." + std::string(87, 'x') + "end");
}

TEST(ShownText, CutsBetweenCharacters) {
  std::string text = "x";
  for (int i = 0; i < 150; ++i) text += "\xC3\xA9";
  text += "x";
  std::string half;
  for (int i = 0; i < 44; ++i) half += "\xC3\xA9";
  EXPECT_EQ(shown(text), "x" + half + "..." + half + "x");
}

}  // namespace
}  // namespace tensorstream::testing
