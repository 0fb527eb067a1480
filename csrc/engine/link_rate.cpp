#include "engine/link_rate.h"

#include <algorithm>
#include <memory>
#include <span>

#include "base/clock.h"
#include "base/units.h"
#include "platform/mapping.h"
#include "tensorstream/error.h"
#include "tensorstream/plan.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kCopiedBytes = 64_MiB;
constexpr int kCopies = 20;

}  // namespace

double measure_link(Device& device) {
  const double assumed = Rates{}.link_bytes_per_second;
  if (device.host_accessible()) return assumed;
  try {
    const Mapping source = Mapping::anonymous(kCopiedBytes);
    const std::span<std::byte> bytes(source.data(), kCopiedBytes);
    std::fill(bytes.begin(), bytes.end(), std::byte{1});
    const std::unique_ptr<HostRegistration> pinned = device.try_register_host(bytes);
    if (pinned == nullptr) return assumed;
    const std::unique_ptr<DeviceMemory> target = device.allocate(kCopiedBytes);
    const std::unique_ptr<Stream> stream = device.create_stream();
    double best = 0;
    for (int copy = 0; copy < kCopies; ++copy) {
      const Clock::time_point start = Clock::now();
      stream->copy_to_device(target->data(), bytes.data(), kCopiedBytes);
      stream->synchronize();
      best = std::max(best, static_cast<double>(kCopiedBytes) / seconds_since(start));
    }
    return best;
  } catch (const BudgetError&) {  // neither memory has so much left
    return assumed;
  }
}

}  // namespace tensorstream
