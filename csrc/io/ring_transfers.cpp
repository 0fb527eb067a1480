#include <algorithm>
#include <array>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "base/log.h"
#include "io/transfer_queue.h"
#include "platform/io_ring.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

class RingTransfers final : public TransferQueue {
 public:
  explicit RingTransfers(std::size_t depth) : depth_(depth), ring_(static_cast<unsigned>(depth)) {}
  RingTransfers(const RingTransfers&) = delete;
  RingTransfers& operator=(const RingTransfers&) = delete;
  ~RingTransfers() override { stop(); }

  std::size_t depth() const noexcept override { return depth_; }

  void run(Done done) override {
    done_ = std::move(done);
    try {
      thread_ = std::jthread([this] { work(); });
    } catch (const std::system_error& error) {
      throw UnsupportedError(std::string("no thread to read files can be had: ") + error.what());
    }
  }

  void stop() noexcept override {
    if (!thread_.joinable()) return;
    ring_.wake();
    thread_.join();
  }

  void use_memory(std::span<std::byte> memory) noexcept override {
    registered_ = ring_.register_memory(memory);
    if (!registered_) log(LogLevel::kDebug, "io_uring registers no memory here; reads go without");
  }

  void start(std::span<Transfer* const> transfers) noexcept override {
    while (!transfers.empty()) {
      const auto part = transfers.first(std::min(transfers.size(), kMostAtOnce));
      start_some(part);
      transfers = transfers.subspan(part.size());
    }
  }

 private:
  static constexpr std::size_t kMostAtOnce = 16;

  void start_some(std::span<Transfer* const> transfers) noexcept {
    std::array<RingRead, kMostAtOnce> reads;
    for (std::size_t i = 0; i < transfers.size(); ++i) {
      Transfer& transfer = *transfers[i];
      reads[i] = {transfer.descriptor, transfer.offset_bytes, transfer.target,
                  registered_ && transfer.in_memory, &transfer};
    }
    const RingSubmission submission = ring_.submit(std::span(reads).first(transfers.size()));
    for (Transfer* const refused : transfers.subspan(submission.taken)) {
      done_(*refused, -std::int64_t{submission.error_number});
    }
  }

  void work() {
    while (true) {
      const RingResult result = ring_.wait();
      if (result.token == nullptr) return;
      done_(*static_cast<Transfer*>(result.token), result.result);
    }
  }

  // Constant after run().
  const std::size_t depth_;
  bool registered_ = false;
  Done done_;

  // Own synchronisation.
  IoRing ring_;

  std::jthread thread_;  // last: it uses all of the above
};

}  // namespace

std::unique_ptr<TransferQueue> create_ring_transfers(std::size_t depth) {
  return std::make_unique<RingTransfers>(depth);
}

}  // namespace tensorstream
