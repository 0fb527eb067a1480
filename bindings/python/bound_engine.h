// The engine that Python holds.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "device/device.h"
#include "engine/ceiling.h"
#include "engine/model_plan.h"
#include "io/reader.h"
#include "memory/budget.h"
#include "platform/process_memory.h"
#include "tensorstream/engine.h"
#include "tensorstream/error.h"

namespace tensorstream {

/// An engine with the device and budget that it needs alive.
class BoundEngine {
 public:
  BoundEngine(std::shared_ptr<Device> device, std::shared_ptr<Budget> budget, const ModelTree& tree,
              const Grouping& grouping, std::vector<std::shared_ptr<Reader>> sources,
              EngineOptions options)
      : device_(std::move(device)), budget_(std::move(budget)) {
    options.fixed_bytes = tree.fixed_bytes;
    ModelSpec model{std::move(sources), tree.tensors, grouping.groups};
    engine_ = std::make_unique<Engine>(*device_, budget_, std::move(model), options);
  }

  /// Without the GIL: the loader's thread may be in a call that needs it, such as a log message.
  ~BoundEngine() {
    const nb::gil_scoped_release released;
    if (in_its_process()) {
      if (ceiling_) ceiling_->detach();
      engine_.reset();
    } else {
      static_cast<void>(engine_.release());  // the threads that it would wait for are not here
    }
  }
  BoundEngine(const BoundEngine&) = delete;
  BoundEngine& operator=(const BoundEngine&) = delete;

  /// Raises UnsupportedError in a child of the process that opened the engine: its threads are not
  /// there.
  Engine& engine() {
    if (!in_its_process()) {
      throw UnsupportedError("this model was offloaded in process " + std::to_string(process_) +
                             " and cannot run in process " + std::to_string(process_id()) +
                             ", which was forked from it: load and offload the model in the child");
    }
    return *engine_;
  }
  /// As the engine has them; nothing in a child of the process that opened it.
  void note_pass_begun() {
    if (in_its_process()) engine_->note_pass_begun();
  }
  void note_pass_ended() {
    if (in_its_process()) engine_->note_pass_ended();
  }
  /// The ceiling over what torch allocates in this engine's forwards; made at the first call.
  std::shared_ptr<Ceiling> ceiling(Pressure pressure, int device_index) {
    if (!ceiling_) {
      ceiling_ = std::make_shared<Ceiling>(device_, budget_, engine(),
                                           Ceiling::Options{pressure, device_index});
    }
    return ceiling_;
  }
  /// What the caller computes on: a CUDA stream's handle; 0 is the device's default.
  Stream& stream(std::uintptr_t handle) { return device_->stream_of(handle); }

 private:
  std::shared_ptr<Device> device_;  // shared by the engines on it
  std::shared_ptr<Budget> budget_;  // likewise, and by what torch holds
  std::unique_ptr<Engine> engine_;
  std::shared_ptr<Ceiling> ceiling_;  // shared with Python; knows when the engine goes
  const std::int64_t process_ = process_id();

  bool in_its_process() const { return process_ == process_id(); }
};

}  // namespace tensorstream
