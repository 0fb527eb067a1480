// IoRing where liburing was not found at build time: none.
#include "platform/io_ring.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

constexpr const char* kRefusal =
    "this build of tensorstream has no io_uring: liburing.a was not found when it was made";

}  // namespace

struct IoRing::State {};

std::optional<std::string> IoRing::refusal() { return kRefusal; }

IoRing::IoRing(unsigned /*entries*/) { throw UnsupportedError(kRefusal); }

IoRing::~IoRing() = default;

bool IoRing::register_memory(std::span<std::byte> /*memory*/) noexcept { return false; }

RingSubmission IoRing::submit(std::span<const RingRead> /*reads*/) noexcept { return {}; }

void IoRing::wake() noexcept {}

RingResult IoRing::wait() noexcept { return {}; }

}  // namespace tensorstream
