#include "store/carried_files.h"

#include <algorithm>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <system_error>

#include "codec/checksum.h"
#include "platform/file.h"
#include "platform/output_file.h"
#include "store/folder_bounds.h"
#include "store/packed_header.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

using PartSink = std::function<void(std::uint64_t offset_bytes, std::span<const std::byte> bytes)>;

/// Hands the parts of a file to `sink` and gives their checksums.
std::vector<std::uint64_t> read_parts(const File& file, Progress& progress, const PartSink& sink) {
  std::vector<std::uint64_t> checksums;
  std::vector<std::byte> part(std::min(kPartBytes, file.size_bytes()));
  for (std::uint64_t offset = 0; offset < file.size_bytes(); offset += part.size()) {
    part.resize(std::min<std::uint64_t>(part.size(), file.size_bytes() - offset));
    file.read_exact(offset, part);
    checksums.push_back(checksum_of(part));
    sink(offset, part);
    progress.add(part.size());
  }
  file.check_unchanged();
  return checksums;
}

}  // namespace

std::vector<CarriedFile> list_carried_files(const std::string& folder,
                                            const std::set<std::string>& left_out) {
  std::vector<CarriedFile> files;
  std::error_code error;
  fs::recursive_directory_iterator entry(folder, error);
  while (!error && entry != fs::recursive_directory_iterator()) {
    const bool hidden = entry->path().filename().string().starts_with('.');
    const bool is_folder = entry->is_directory(error);
    if (hidden && is_folder) entry.disable_recursion_pending();
    const std::string name = entry->path().lexically_relative(folder).string();
    if (!error && !hidden && !is_folder && !left_out.contains(name)) {
      check_stays_in_folder(folder, name);
      files.push_back({name, File::open_for_reading(entry->path().string()).size_bytes(), {}});
    }
    if (!error) entry.increment(error);
  }
  if (error) {
    throw IoError("cannot list the folder '" + folder + "': " + error.message(), folder, 0,
                  error.value());
  }
  std::ranges::sort(files, {}, &CarriedFile::name);
  return files;
}

CarriedFile copy_carried_file(const std::string& from, const std::string& to, Progress& progress) {
  const File source = File::open_for_reading(from);
  const OutputFile target = OutputFile::create(to);
  CarriedFile copied;
  copied.checksums = read_parts(source, progress,
                                [&](std::uint64_t offset_bytes, std::span<const std::byte> bytes) {
                                  target.write_at(offset_bytes, bytes);
                                });
  copied.size_bytes = source.size_bytes();
  target.sync();
  return copied;
}

CarriedFile examine_carried_file(const std::string& path, Progress& progress) {
  const File file = File::open_for_reading(path);
  CarriedFile found;
  found.size_bytes = file.size_bytes();
  found.checksums = read_parts(file, progress, [](std::uint64_t, std::span<const std::byte>) {});
  return found;
}

void check_carried_file(const std::string& path, const CarriedFile& found,
                        const CarriedFile& recorded) {
  const std::string advice = "; it was damaged or changed since it was packed: pack again";
  if (found.size_bytes != recorded.size_bytes) {
    throw FormatError(path, "",
                      "carried file: it has " + std::to_string(found.size_bytes) +
                          " bytes, and had " + std::to_string(recorded.size_bytes) + advice);
  }
  const auto [now, then] = std::ranges::mismatch(found.checksums, recorded.checksums);
  if (now != found.checksums.end() || then != recorded.checksums.end()) {  // guard: carried-file
    throw FormatError(path, "",
                      "carried file: chunk " + std::to_string(now - found.checksums.begin()) +
                          " of 2 MiB is not what it was" + advice);
  }
}

}  // namespace tensorstream
