// An owned file descriptor.
#pragma once

namespace tensorstream {

/// Closes what it owns. Move-only.
class Descriptor {
 public:
  Descriptor() = default;
  explicit Descriptor(int number) noexcept : number_(number) {}
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  ~Descriptor();

  int get() const noexcept { return number_; }

 private:
  void close() noexcept;

  int number_ = -1;
};

}  // namespace tensorstream
