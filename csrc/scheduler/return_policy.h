// When residents that gave way come back, and when those that stayed are exchanged for others.
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

/// Watches forwards for when residents may be exchanged: what gave way is what a pass uses last,
/// and the others would be spread better. Once a whole forward without pressure was timed, and not
/// again before an exchange can have made up for its loads: a cache that grows presses every few
/// forwards. Not thread-safe.
class ExchangePolicy {
 public:
  /// In how many passes residents that are exchanged have to make up for their loads.
  static constexpr int kPassesToMakeUp = 8;

  /// True where it is time. `pressed` as ReturnPolicy has it.
  bool forward_ended(bool pressed);

 private:
  // The time of the first is known when the second has begun.
  static constexpr int kQuietForwards = 2;

  int since_ = kPassesToMakeUp;  // forwards, the last exchange
  int quiet_ = 0;
  bool pending_ = false;
};

}  // namespace tensorstream
