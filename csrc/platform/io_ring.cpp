#include "platform/io_ring.h"

#include <liburing.h>
#include <sys/uio.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <system_error>
#include <thread>
#include <utility>

#include "base/log.h"
#include "base/mutex.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// How long a thread waits before it looks whether it is to go on.
constexpr std::chrono::seconds kLook{1};
constexpr std::chrono::milliseconds kRetryAfter{10};

std::string refusal_text(int error_number) {
  const std::string error = std::generic_category().message(error_number);
  switch (error_number) {
    case ENOSYS:
      return "this kernel has no io_uring (" + error + ")";
    case EPERM:
    case EACCES:
      return "io_uring is forbidden here, by a container's seccomp profile or "
             "kernel.io_uring_disabled (" +
             error + ")";
    case ENOMEM:
      return "io_uring may lock no memory here; raise the limit that 'ulimit -l' shows (" + error +
             ")";
    default:
      return "io_uring_setup failed: " + error;
  }
}

}  // namespace

struct IoRing::State {
  io_uring ring{};
  // Guards the side of the ring that reads are put in; the other belongs to who waits.
  Mutex mutex;
  int broken TS_GUARDED_BY(mutex) = 0;  // the errno of a submission that failed
  // That wait() is to end, for one that no entry of the ring reaches any more.
  std::atomic<bool> awake{false};
  // What was written before a read was put in happened before its result came out: by the kernel's
  // doing, of which neither the language nor the thread sanitizer knows.
  std::atomic<std::uint64_t> handed_over{0};

  /// Puts one entry in the ring, which has room for it.
  io_uring_sqe& next() TS_REQUIRES(mutex) { return *io_uring_get_sqe(&ring); }
  void submit_all() TS_REQUIRES(mutex);
  /// An errno; ETIME after kLook, where the kernel can be asked for that without an entry.
  int wait_a_while(io_uring_cqe*& entry) noexcept;
};

std::optional<std::string> IoRing::refusal() {
  io_uring ring{};
  if (const int error = -io_uring_queue_init(2, &ring, 0); error != 0) return refusal_text(error);
  io_uring_probe* const probe = io_uring_get_probe_ring(&ring);
  const bool reads = probe != nullptr && io_uring_opcode_supported(probe, IORING_OP_READ) != 0;
  io_uring_free_probe(probe);
  io_uring_queue_exit(&ring);
  if (!reads) return "this kernel's io_uring has no plain reads: Linux 5.6 is the first that does";
  return std::nullopt;
}

IoRing::IoRing(unsigned entries) : state_(std::make_unique<State>()) {
  // One more, for wake().
  if (const int error = -io_uring_queue_init(entries + 1, &state_->ring, 0); error != 0) {
    throw UnsupportedError(refusal_text(error));
  }
}

IoRing::~IoRing() { io_uring_queue_exit(&state_->ring); }

bool IoRing::register_memory(std::span<std::byte> memory) noexcept {
  const iovec part{memory.data(), memory.size()};
  return io_uring_register_buffers(&state_->ring, &part, 1) == 0;
}

void IoRing::State::submit_all() {
  handed_over.fetch_add(1, std::memory_order_release);
  while (broken == 0 && io_uring_sq_ready(&ring) > 0) {
    const int count = io_uring_submit(&ring);
    if (count >= 0 || count == -EINTR) continue;
    if (count == -EAGAIN || count == -EBUSY) {
      std::this_thread::yield();  // the kernel has no memory for it at the moment
      continue;
    }
    // What is in the ring now never reaches the kernel: its owners are told that it failed.
    broken = -count;
  }
}

int IoRing::State::wait_a_while(io_uring_cqe*& entry) noexcept {
  if ((ring.features & IORING_FEAT_EXT_ARG) == 0) return -io_uring_wait_cqe(&ring, &entry);
  __kernel_timespec look{.tv_sec = kLook.count(), .tv_nsec = 0};
  return -io_uring_wait_cqe_timeout(&ring, &entry, &look);
}

RingSubmission IoRing::submit(std::span<const RingRead> reads) noexcept {
  const MutexLock lock(state_->mutex);
  if (state_->broken != 0) return {0, state_->broken};
  for (const RingRead& read : reads) {
    io_uring_sqe& entry = state_->next();
    const auto size = static_cast<unsigned>(read.target.size());
    if (read.registered) {
      io_uring_prep_read_fixed(&entry, read.descriptor, read.target.data(), size, read.offset_bytes,
                               0);
    } else {
      io_uring_prep_read(&entry, read.descriptor, read.target.data(), size, read.offset_bytes);
    }
    io_uring_sqe_set_data(&entry, read.token);
  }
  state_->submit_all();
  return {reads.size() - io_uring_sq_ready(&state_->ring), state_->broken};
}

void IoRing::wake() noexcept {
  const MutexLock lock(state_->mutex);
  state_->awake = true;
  if (state_->broken != 0) return;
  io_uring_sqe& entry = state_->next();
  io_uring_prep_nop(&entry);
  io_uring_sqe_set_data(&entry, nullptr);
  state_->submit_all();
}

RingResult IoRing::wait() noexcept {
  io_uring_cqe* entry = nullptr;
  for (bool told = false; true;) {
    const int error = state_->wait_a_while(entry);
    if (error == 0) break;
    if (state_->awake) return {};  // guard: woken-without-the-ring
    if (error == EINTR || error == EAGAIN || error == ETIME) continue;
    // The kernel may write to the targets still: nothing can be given up here.
    if (!std::exchange(told, true)) {
      log(LogLevel::kError,
          "waiting for io_uring failed: " + std::generic_category().message(error));
    }
    std::this_thread::sleep_for(kRetryAfter);
  }
  static_cast<void>(state_->handed_over.load(std::memory_order_acquire));
  const RingResult result{io_uring_cqe_get_data(entry), entry->res};
  io_uring_cqe_seen(&state_->ring, entry);
  return result;
}

}  // namespace tensorstream
