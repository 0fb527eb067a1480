#include "platform/output_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cerrno>
#include <csignal>
#include <filesystem>

#include "made_bytes/weights.h"
#include "platform/file.h"
#include "temporary_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

std::vector<std::byte> contents(const std::string& path) {
  const File file = File::open_for_reading(path);
  std::vector<std::byte> bytes(file.size_bytes());
  file.read_exact(0, bytes);
  return bytes;
}

TEST(OutputFile, HoldsWhatWasWrittenWhereItWasWritten) {
  const TemporaryFolder folder;
  const std::vector<std::byte> bytes = patterned_bytes(1000);
  const OutputFile file = OutputFile::create(folder.path("a"));
  file.write_at(500, std::span(bytes).subspan(500));
  file.write_at(0, std::span(bytes).first(500));
  file.sync();
  EXPECT_EQ(contents(file.path()), bytes);
  file.resize(1200);
  EXPECT_EQ(contents(file.path()).at(1199), std::byte{0});
  file.resize(3);
  EXPECT_EQ(contents(file.path()).size(), 3U);
}

TEST(OutputFile, IsNotCreatedOverAnother) {
  const TemporaryFolder folder;
  const std::string path = folder.write("a", patterned_bytes(10));
  try {
    OutputFile::create(path);
    FAIL() << "created";
  } catch (const IoError& error) {
    EXPECT_EQ(error.error_number(), EEXIST);
    EXPECT_EQ(error.path(), path);
  }
  EXPECT_EQ(contents(path), patterned_bytes(10));
}

TEST(OutputFile, AWriteThatFailsNamesFileAndOffset) {
  const TemporaryFolder folder;
  const OutputFile file = OutputFile::create(folder.path("a"));
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{100, before.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  int error_number = 0;
  try {
    file.write_at(64, patterned_bytes(100));
  } catch (const IoError& error) {
    error_number = error.error_number();
    EXPECT_EQ(error.path(), file.path());
    EXPECT_EQ(error.offset_bytes(), 64U);
  }
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(error_number, EFBIG);
}

TEST(OutputFile, WhatAnotherWroteIsSyncedToo) {
  const TemporaryFolder folder;
  EXPECT_NO_THROW(sync_file(folder.write("x", patterned_bytes(100))));
  try {
    sync_file(folder.path("gone"));
    FAIL();
  } catch (const IoError& error) {
    EXPECT_EQ(error.path(), folder.path("gone"));
    EXPECT_EQ(error.error_number(), ENOENT);
  }
}

}  // namespace
}  // namespace tensorstream
