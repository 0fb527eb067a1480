// Checkpoints, packed and back.
#include "store/pack.h"

#include <nanobind/stl/function.h>
#include <nanobind/stl/string.h>

#include <cstdint>
#include <string>

#include "bindings.h"
#include "platform/processors.h"

namespace tensorstream {
namespace {

using namespace nb::literals;

/// 0 threads are as many as there are processors.
unsigned thread_count(unsigned threads) { return threads == 0 ? usable_processors() : threads; }

CheckpointSummary pack(const std::string& source, const std::string& target, std::uint32_t level,
                       unsigned threads, const ProgressSink& progress) {
  const PackOptions options{CompressionLevel(level), thread_count(threads)};
  return pack_checkpoint(source, target, options, progress);
}

CheckpointSummary unpack(const std::string& source, const std::string& target, unsigned threads,
                         const ProgressSink& progress) {
  return unpack_checkpoint(source, target, thread_count(threads), progress);
}

CheckpointSummary verify(const std::string& path, unsigned threads, const ProgressSink& progress) {
  return verify_checkpoint(path, thread_count(threads), progress);
}

}  // namespace

void init_pack(nb::module_& module) {
  nb::class_<CheckpointSummary>(module, "CheckpointSummary")
      .def_ro("files", &CheckpointSummary::files)
      .def_ro("tensors", &CheckpointSummary::tensors)
      .def_ro("encoded_tensors", &CheckpointSummary::encoded_tensors)
      .def_ro("original_bytes", &CheckpointSummary::original_bytes)
      .def_ro("stored_bytes", &CheckpointSummary::stored_bytes);
  // nanobind's functions take the GIL where they are called and destroyed.
  module.def("pack_checkpoint", &pack, "source"_a, "target"_a, "level"_a, "threads"_a, "progress"_a,
             Unlocked(), "Packs a checkpoint into a new folder; 0 threads are one a processor.");
  module.def("unpack_checkpoint", &unpack, "source"_a, "target"_a, "threads"_a, "progress"_a,
             Unlocked(), "Gives back the files of a packed checkpoint in a new folder.");
  module.def("verify_checkpoint", &verify, "path"_a, "threads"_a, "progress"_a, Unlocked(),
             "Checks a checkpoint, packed or not.");
}

}  // namespace tensorstream
