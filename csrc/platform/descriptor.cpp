#include "platform/descriptor.h"

#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <utility>

#include "base/log.h"

namespace tensorstream {

Descriptor::Descriptor(Descriptor&& other) noexcept : number_(std::exchange(other.number_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  if (this == &other) return *this;
  close();
  number_ = std::exchange(other.number_, -1);
  return *this;
}

Descriptor::~Descriptor() { close(); }

void Descriptor::close() noexcept {
  if (number_ < 0) return;
  // Linux frees the descriptor even where close is interrupted: a retry could close another's.
  if (::close(std::exchange(number_, -1)) == 0) return;
  std::array<char, 64> message{};
  std::snprintf(message.data(), message.size(), "close of a file failed: errno %d", errno);
  log(LogLevel::kWarning, message.data());
}

}  // namespace tensorstream
