#include "io/pinned_file.h"

#include <algorithm>
#include <string>

#include "base/log.h"
#include "base/units.h"
#include "platform/page_cache.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// As PinnedMemoryOptions::piece_bytes.
constexpr std::uint64_t kPieceBytes = 1_GiB;

}  // namespace

std::unique_ptr<PinnedFile> PinnedFile::try_create(std::shared_ptr<Device> device, const File& file,
                                                   FileLease& lease) {
  if (file.size_bytes() == 0 || !lies_in_ram(file)) return nullptr;
  std::unique_ptr<PinnedFile> made(new PinnedFile(std::move(device), file, lease));
  // Held, so that no page is asked for that a truncation has taken.
  const std::optional<Hold> hold = made->try_hold();
  if (!hold || !made->try_register()) return nullptr;
  return made;
}

bool PinnedFile::try_register() {
  try {
    mapping_ = Mapping::of_file(file_);
  } catch (const IoError& error) {  // no addresses left for it
    log(LogLevel::kInfo, error.what());
    return false;
  }
  const std::uint64_t end = align_up(file_.size_bytes(), page_size_bytes());
  for (std::uint64_t begin = 0; begin < end; begin += kPieceBytes) {
    auto registration =
        device_->try_register_source({mapping_.data() + begin, std::min(kPieceBytes, end - begin)});
    if (registration == nullptr) return false;
    registrations_.push_back(std::move(registration));
  }
  // The device has the pages by their own addresses; mapped they would count as this process's.
  mapping_.release_pages(0, end);
  log(LogLevel::kInfo, "'" + file_.path() + "', " + format_size(file_.size_bytes()) +
                           " in RAM, is registered with device " + device_->name());
  return true;
}

const std::byte* PinnedFile::address(std::uint64_t offset_bytes) const noexcept {
  return mapping_.data() + offset_bytes;
}

std::uint64_t PinnedFile::piece_end(std::uint64_t offset_bytes) const noexcept {
  return std::min((offset_bytes / kPieceBytes + 1) * kPieceBytes, file_.size_bytes());
}

std::optional<PinnedFile::Hold> PinnedFile::try_hold() {
  if (!lease_.take()) return std::nullopt;  // guard: pinned-file-held
  Hold hold(*this);
  hold.check_unchanged();  // guard: pinned-file-unchanged
  return hold;
}

PinnedFile::Hold& PinnedFile::Hold::operator=(Hold&& other) noexcept {
  if (this == &other) return *this;
  give_back();
  file_ = std::exchange(other.file_, nullptr);
  return *this;
}

void PinnedFile::Hold::check_unchanged() const { file_->file_.check_unchanged(); }

void PinnedFile::Hold::give_back() noexcept {
  if (file_ != nullptr) file_->lease_.give_back();
}

}  // namespace tensorstream
