// When residents that gave way come back.
#pragma once

#include <cstdint>

namespace tensorstream {

/// Watches forwards. Residents do not come back in the forward that follows a short one: first some
/// forwards pass without pressure, then, if there was any, torch's allocator gives back what it
/// only keeps, and what is still free after one more forward is what the residents may take. Where
/// the pressure comes back soon after they did, the next time takes twice as many forwards. Not
/// thread-safe.
class ReturnPolicy {
 public:
  enum class Step {
    kNothing,
    /// The allocator is to give back the memory that it keeps for later.
    kTrim,
    /// Residents may take what is free.
    kReturn,
  };

  /// What happened in a forward that is over.
  struct Forward {
    /// Residents gave way, or a request was refused.
    bool pressed = false;
    /// Some residents are away now.
    bool away = false;
  };

  Step forward_ended(const Forward& forward);
  /// There was no room for any that kReturn would have had come back: the next time comes later.
  void nothing_returned();

 private:
  std::uint32_t quiet_ = 0;  // forwards since the last pressure or return
  std::uint32_t wait_ = kFirstWait;
  bool pressed_ = false;   // ever
  bool returned_ = false;  // and no pressure since

  static constexpr std::uint32_t kFirstWait = 8;
  static constexpr std::uint32_t kLongestWait = 1024;
};

}  // namespace tensorstream
