#include "platform/held_file.h"

namespace tensorstream {

HeldFile::HeldFile(const std::string& path)
    : file_(File::open_for_reading(path)), lease_(std::make_unique<FileLease>(file_)) {
  is_leased_ = lease_->take();  // guard: held-while-loaded
  if (!is_leased_) check_no_writer(file_);
}

void HeldFile::let_go() noexcept {
  lease_.reset();
  is_leased_ = false;
}

}  // namespace tensorstream
