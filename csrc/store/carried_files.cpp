#include "store/carried_files.h"

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <filesystem>
#include <functional>
#include <span>
#include <system_error>
#include <utility>

#include "codec/checksum.h"
#include "platform/file.h"
#include "platform/file_lease.h"
#include "platform/output_file.h"
#include "store/folder_bounds.h"
#include "store/packed_header.h"
#include "store/shown_text.h"
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

/// Far more than a checkpoint has; links to folders can make a few of them without end.
constexpr std::size_t kMostEntries = 100'000;

/// Lists the files below a folder; links are followed, within it.
class FileList {
 public:
  FileList(const std::string& folder, const std::set<std::string>& left_out)
      : folder_(folder), left_out_(left_out) {}

  std::vector<CarriedFile> take() {
    list("");
    std::ranges::sort(files_, {}, &CarriedFile::name);
    return std::move(files_);
  }

 private:
  /// Of the folder called `below`, below the first.
  void list(const std::string& below) {
    std::error_code error;
    const fs::path path = fs::path(folder_) / below;
    const fs::path real = fs::canonical(path, error);
    if (error) refuse(path.string(), error);
    if (std::ranges::find(within_, real) != within_.end()) {  // guard: link-to-folder-above
      throw FormatError(
          path.string(), "",
          "link: it leads to '" + shown(real.string()) + "', a folder that it is in; remove it");
    }
    within_.push_back(real);
    fs::directory_iterator entry(path, error);
    while (!error && entry != fs::directory_iterator()) {
      const std::string name = entry->path().filename().string();
      if (!name.starts_with('.')) add((fs::path(below) / name).string());
      entry.increment(error);
    }
    if (error) refuse(path.string(), error);
    within_.pop_back();
  }

  void add(const std::string& name) {
    if (left_out_.contains(name)) return;
    const std::string path = (fs::path(folder_) / name).string();
    if (++entries_ > kMostEntries) {
      throw UnsupportedError(
          "'" + folder_ + "' has more than " + std::to_string(kMostEntries) +
          " files and folders, links followed; give the checkpoint's own folder");
    }
    std::error_code error;
    const fs::file_status status = fs::status(path, error);
    if (status.type() == fs::file_type::not_found) {
      throw IoError("'" + shown(path) + "' is a link to nothing; remove it, or put the file there",
                    path, 0, ENOENT);
    }
    if (error) refuse(path, error);
    check_stays_in_folder(folder_, name);  // guard: carried-link
    if (status.type() == fs::file_type::directory) {
      list(name);
      return;
    }
    if (status.type() != fs::file_type::regular) {
      throw UnsupportedError("'" + shown(path) + "' is neither a file nor a folder; remove it");
    }
    files_.push_back({name, File::open_for_reading(path).size_bytes(), {}});
  }

  [[noreturn]] static void refuse(const std::string& path, const std::error_code& error) {
    throw IoError("cannot list '" + shown(path) + "': " + error.message(), path, 0, error.value());
  }

  const std::string& folder_;
  const std::set<std::string>& left_out_;
  std::vector<CarriedFile> files_;
  std::size_t entries_ = 0;
  /// The folders that are being listed, each in the one before, without links.
  std::vector<fs::path> within_;
};

}  // namespace

std::vector<CarriedFile> list_carried_files(const std::string& folder,
                                            const std::set<std::string>& left_out) {
  return FileList(folder, left_out).take();
}

std::uint64_t carried_bytes(const std::vector<CarriedFile>& files) noexcept {
  std::uint64_t sum = 0;
  for (const CarriedFile& file : files) sum += file.size_bytes;
  return sum;
}

CarriedFile copy_carried_file(const std::string& from, const std::string& to, Progress& progress) {
  const File source = File::open_for_reading(from);
  check_no_writer(source);  // guard: carried-no-writer
  const OutputFile target = OutputFile::create(to);
  CarriedFile copied;
  copied.checksums = read_parts(source, progress,
                                [&](std::uint64_t offset_bytes, std::span<const std::byte> bytes) {
                                  target.write_at(offset_bytes, bytes);
                                });
  check_no_writer(source);  // guard: carried-no-writer
  copied.size_bytes = source.size_bytes();
  copied.identity = source.identity();
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

// Inodes and times of the same bytes change too: by links, rights, and file systems that number a
// file anew once it is closed.
void check_still_there(const std::string& folder, const std::vector<CarriedFile>& copied) {
  Progress untold(nullptr, 0);
  for (const CarriedFile& one : copied) {
    const std::string path = (fs::path(folder) / one.name).string();
    if (File::open_for_reading(path).identity().is_as(one.identity)) continue;
    if (examine_carried_file(path, untold).checksums == one.checksums) continue;
    throw IoError("'" + shown(path) +
                      "' changed while its folder was packed, which would be two states of it in "
                      "one; pack it when nobody writes there",
                  path, 0, 0);
  }
}

void check_carried_file(const std::string& path, const CarriedFile& found,
                        const CarriedFile& recorded) {
  const std::string advice = " when the folder was packed; " + std::string(kCarriedAdvice);
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
