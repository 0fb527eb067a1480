#include "platform/output_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>
#include <utility>

#include "base/units.h"
#include "platform/retry.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr mode_t kReadableByAll = 0666;  // less the process's umask

std::string error_text(int error_number) { return std::generic_category().message(error_number); }

}  // namespace

OutputFile OutputFile::create(const std::string& path) {
  Descriptor descriptor(retry_interrupted([&] {
    return ::open(path.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, kReadableByAll);
  }));
  if (descriptor.get() < 0) {
    const int error = errno;
    throw IoError("cannot create '" + path + "': " + error_text(error), path, 0, error);
  }
  return {path, std::move(descriptor)};
}

OutputFile::OutputFile(std::string path, Descriptor descriptor)
    : path_(std::move(path)), descriptor_(std::move(descriptor)) {}

void OutputFile::write_at(std::uint64_t offset_bytes, std::span<const std::byte> bytes) const {
  const int error = write_fully(
      [&](std::uint64_t done, std::span<const std::byte> rest) {
        return ::pwrite(descriptor_.get(), rest.data(), rest.size(),
                        static_cast<off_t>(offset_bytes + done));
      },
      bytes);
  if (error == 0) return;
  throw IoError("write of " + format_size(bytes.size()) + " at offset " +
                    std::to_string(offset_bytes) + " of '" + path_ +
                    "' failed: " + error_text(error),
                path_, offset_bytes, error);
}

void OutputFile::resize(std::uint64_t size_bytes) const {
  const auto resized = retry_interrupted(
      [&] { return ::ftruncate(descriptor_.get(), static_cast<off_t>(size_bytes)); });
  if (resized == 0) return;
  const int error = errno;
  throw IoError("cannot make '" + path_ + "' " + std::to_string(size_bytes) +
                    " bytes long: " + error_text(error),
                path_, 0, error);
}

void OutputFile::sync() const {
  if (retry_interrupted([&] { return ::fsync(descriptor_.get()); }) == 0) return;
  const int error = errno;
  throw IoError("'" + path_ + "' could not be written to the disk: " + error_text(error), path_, 0,
                error);
}

void sync_file(const std::string& path) {
  const Descriptor descriptor(
      retry_interrupted([&] { return ::open(path.c_str(), O_RDONLY | O_CLOEXEC); }));
  const bool open = descriptor.get() >= 0;
  if (open && retry_interrupted([&] { return ::fsync(descriptor.get()); }) == 0) return;
  const int error = errno;
  throw IoError("'" + path + "' could not be written to the disk: " + error_text(error), path, 0,
                error);
}

}  // namespace tensorstream
