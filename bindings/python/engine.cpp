// The engine: sources, device, leases, reads.
#include "tensorstream/engine.h"

#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bindings.h"
#include "bound_engine.h"
#include "device/cuda_device.h"
#include "device/host_device.h"
#include "engine/ceiling.h"
#include "engine/link_rate.h"
#include "engine/model_plan.h"
#include "engine/packed_reader.h"
#include "engine/prefetch.h"
#include "io/file_opener.h"
#include "io/reader.h"
#include "memory/budget.h"
#include "owners.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

using namespace nb::literals;
using ByteArray = nb::ndarray<std::uint8_t, nb::ndim<1>, nb::c_contig>;

/// Where arrays say that their memory is.
enum class ArrayDevice { kHost, kCuda };

ByteArray byte_array(std::byte* data, std::uint64_t size_bytes, const nb::object& owner,
                     const std::pair<ArrayDevice, int>& place) {
  const int type =
      place.first == ArrayDevice::kCuda ? nb::device::cuda::value : nb::device::cpu::value;
  return ByteArray(data, {size_bytes}, owner, {}, nb::dtype<std::uint8_t>(), type, place.second);
}

/// The device memory of each tensor of a group, as arrays that keep the engine alive.
std::vector<ByteArray> places(const nb::object& self, GroupId group,
                              const std::pair<ArrayDevice, int>& on) {
  BoundEngine& bound = nb::cast<BoundEngine&>(self);
  const std::vector<TensorPlace> found = unlocked([&] { return bound.engine().places(group); });
  std::vector<ByteArray> result;
  for (const TensorPlace& place : found) {
    result.push_back(byte_array(place.data, place.size_bytes, self, on));
  }
  return result;
}

/// The home of a tensor, as an array that keeps the engine alive; nothing where it has none.
std::optional<ByteArray> home(const nb::object& self, TensorId tensor, std::uint64_t size_bytes,
                              const std::pair<ArrayDevice, int>& on) {
  BoundEngine& bound = nb::cast<BoundEngine&>(self);
  std::byte* const data = unlocked([&] { return bound.engine().home_address(tensor); });
  if (data == nullptr) return std::nullopt;
  return byte_array(data, size_bytes, self, on);
}

/// A lease that no signal's handler comes between: those run in code of Python's alone.
nb::object on_lease(BoundEngine& bound, GroupId group, std::uintptr_t stream,
                    const nb::callable& call) {
  const auto release = [&] { bound.engine().release(group, bound.stream(stream)); };
  if (!unlocked([&] { return bound.engine().acquire(group, bound.stream(stream)); })) {
    return nb::none();
  }
  nb::object result;
  try {
    result = call();
  } catch (...) {
    unlocked(release);
    throw;
  }
  unlocked(release);
  return result;
}

void init_statistics(nb::module_& module) {
  nb::class_<CompressionStatistics>(module, "CompressionStatistics")
      .def_ro("level", &CompressionStatistics::level)
      .def_ro("coded_bytes", &CompressionStatistics::coded_bytes)
      .def_ro("decoded_bytes", &CompressionStatistics::decoded_bytes)
      .def_ro("reason", &CompressionStatistics::reason)
      .def_prop_ro("ratio", &CompressionStatistics::ratio);
  nb::class_<Statistics>(module, "Statistics")
      .def_ro("budget_bytes", &Statistics::budget_bytes)
      .def_ro("held_bytes", &Statistics::held_bytes)
      .def_ro("peak_held_bytes", &Statistics::peak_held_bytes)
      .def_ro("kept_bytes", &Statistics::kept_bytes)
      .def_ro("source_ram_bytes", &Statistics::source_ram_bytes)
      .def_ro("pinned_bytes", &Statistics::pinned_bytes)
      .def_ro("staging_bytes", &Statistics::staging_bytes)
      .def_ro("ram_budget_bytes", &Statistics::ram_budget_bytes)
      .def_ro("ram_held_bytes", &Statistics::ram_held_bytes)
      .def_ro("peak_ram_held_bytes", &Statistics::peak_ram_held_bytes)
      .def_ro("read_ahead_bytes", &Statistics::read_ahead_bytes)
      .def_ro("compression", &Statistics::compression)
      .def_ro("given_way_bytes", &Statistics::given_way_bytes)
      .def_ro("gave_way", &Statistics::gave_way)
      .def_ro("acquires", &Statistics::acquires)
      .def_ro("hits", &Statistics::hits)
      .def_ro("partial_hits", &Statistics::partial_hits)
      .def_ro("misses", &Statistics::misses)
      .def_ro("surprises", &Statistics::surprises)
      .def_ro("loads", &Statistics::loads)
      .def_ro("streamed_bytes", &Statistics::streamed_bytes)
      .def_ro("streamed_ram_bytes", &Statistics::streamed_ram_bytes)
      .def_ro("streamed_disk_bytes", &Statistics::streamed_disk_bytes)
      .def_ro("decoded_bytes", &Statistics::decoded_bytes)
      .def_ro("kept_decoded_bytes", &Statistics::kept_decoded_bytes)
      .def_ro("on_demand_bytes", &Statistics::on_demand_bytes)
      .def_ro("load_seconds", &Statistics::load_seconds)
      .def_ro("stalled_seconds", &Statistics::stalled_seconds)
      .def_ro("active_seconds", &Statistics::active_seconds)
      .def_ro("host_seconds", &Statistics::host_seconds)
      .def_ro("predicted_seconds", &Statistics::predicted_seconds)
      .def_prop_ro("streamed_bytes_per_second", &Statistics::streamed_bytes_per_second)
      .def_prop_ro("stalled_share", &Statistics::stalled_share);
}

void init_device(nb::module_& module) {
  nb::class_<Device>(module, "Device")
      .def_prop_ro("name", &Device::name)
      .def_prop_ro("total_bytes", &Device::total_bytes)
      .def_prop_ro("free_bytes", &Device::free_bytes)
      .def("measure_link", &measure_link, Unlocked(),
           "Bytes a second from pinned host memory to the device; what plans assume for a host.")
      .def(
          "synchronize", [](Device& self) { self.caller_stream().synchronize(); }, Unlocked(),
          "Waits for the work of the default stream.");
  nb::class_<CufilePlaces>(module, "CufilePlaces")
      .def(nb::init<>())
      .def_rw("library", &CufilePlaces::library)
      .def_rw("folders", &CufilePlaces::folders)
      .def_rw("nvidia_fs", &CufilePlaces::nvidia_fs);
  nb::enum_<Checking>(module, "Checking").value("OFF", Checking::kOff).value("ON", Checking::kOn);
  module.def(
      "host_device",
      [](Checking checking, std::uint64_t seed) {
        return std::shared_ptr<Device>(create_host_device({checking, seed}));
      },
      "checking"_a, "seed"_a, "The host as a device.");
  module.def(
      "cuda_device",
      [](int index, Checking checking, std::uint64_t seed, const std::string& driver_library,
         const std::string& compiler_library, const std::vector<std::string>& compiler_folders,
         const CufilePlaces& cufile) {
        CudaDeviceOptions options;
        options.index = index;
        options.checking = checking;
        options.seed = seed;
        options.driver_library = driver_library;
        options.compiler = {compiler_library, compiler_folders};
        options.cufile = cufile;
        return std::shared_ptr<Device>(create_cuda_device(options));
      },
      "index"_a, "checking"_a, "seed"_a, "driver_library"_a = std::string(kCudaDriverLibrary),
      "compiler_library"_a = "", "compiler_folders"_a = std::vector<std::string>(),
      "cufile"_a = CufilePlaces(),
      "A GPU, by its driver's number; tests give another driver, compiler of kernels and cuFile.");
  nb::enum_<ArrayDevice>(module, "ArrayDevice")
      .value("HOST", ArrayDevice::kHost)
      .value("CUDA", ArrayDevice::kCuda);

  nb::class_<Budget>(module, "Budget")
      .def_prop_ro("limit_bytes", &Budget::limit_bytes)
      .def_prop_ro("used_bytes", &Budget::used_bytes)
      .def_prop_ro("peak_bytes", &Budget::peak_bytes);
  module.def("create_budget", &Budget::create, "limit_bytes"_a, "A ceiling that engines share.");
}

void init_backends(nb::module_& module) {
  nb::enum_<FileBackend>(module, "FileBackend")
      .value("MMAP", FileBackend::kMmap)
      .value("PREAD", FileBackend::kPread)
      .value("DIRECT", FileBackend::kDirect)
      .value("IO_URING", FileBackend::kIoUring)
      .value("CACHED", FileBackend::kCached)
      .value("CUDA", FileBackend::kCuda)
      .value("GPUDIRECT", FileBackend::kGpudirect);
  nb::class_<ProbeResult>(module, "ProbeResult")
      .def(nb::init<bool, bool, std::string>(), "is_usable"_a, "is_peer_to_peer"_a, "reason"_a)
      .def_ro("is_usable", &ProbeResult::is_usable)
      .def_ro("is_peer_to_peer", &ProbeResult::is_peer_to_peer)
      .def_ro("reason", &ProbeResult::reason);
  module.def("probe", &probe, "backend"_a, "device"_a.none(), Unlocked(),
             "Whether files can be read so for a model on the device, and how or why not.");
  module.def("probe_peer_to_peer", &probe_peer_to_peer, "device"_a, Unlocked(),
             "The same of gpudirect, for a choice that takes it where the disk writes to device "
             "memory itself.");
}

void init_readers(nb::module_& module) {
  nb::class_<Reader>(module, "Reader")
      .def_prop_ro("name", &Reader::name)
      .def_prop_ro("size_bytes", &Reader::size_bytes)
      .def_prop_ro(
          "is_pinned", [](const Reader& self) { return self.pinned_file() != nullptr; },
          "Whether it is a file in RAM that the device copies from by itself.")
      .def(
          "frame_bytes", &Reader::frame_bytes, "offset_bytes"_a, "size_bytes"_a,
          "About what frames take that the source has of a range; 0 where it has its bytes as they "
          "are.")
      .def(
          "is_of_file_of",
          [](const Reader& self, const Reader& other) {
            return self.identity() != nullptr && other.identity() != nullptr &&
                   other.identity()->is_as(*self.identity());
          },
          "other"_a, "Whether both read one file, in one state.")
      .def(
          "read",
          [](Reader& self, std::uint64_t offset_bytes, std::uintptr_t address,
             std::uint64_t size_bytes) {
            self.read(offset_bytes, {at_address<std::byte>(address), size_bytes});
          },
          "offset_bytes"_a, "address"_a, "size_bytes"_a, Unlocked(),
          "Fills the memory at `address` with the source's bytes.");
  module.def(
      "open_packed_reader",
      [](const std::string& path) { return std::shared_ptr<Reader>(open_packed_reader(path)); },
      "path"_a, Unlocked(),
      "A source that is a packed file; offsets are those of the file it was.");
  nb::class_<FileOpener>(module, "FileOpener")
      .def(nb::init<FileBackend, std::shared_ptr<Device>>(), "backend"_a,
           "device"_a.none() = nb::none(), Unlocked())
      .def_prop_ro("about", &FileOpener::about)
      .def_prop_ro("device_memory_bytes", &FileOpener::device_memory_bytes)
      .def(
          "open",
          [](const FileOpener& self, const std::string& path) {
            return std::shared_ptr<Reader>(self.open(path));
          },
          "path"_a, Unlocked(), "A source that is a file.")
      .def(
          "open_packed",
          [](const FileOpener& self, const std::string& path) {
            return std::shared_ptr<Reader>(open_packed_reader(path, self));
          },
          "path"_a, Unlocked(),
          "A source that is a packed file; offsets are those of the file it was.");
  module.def(
      "create_memory_reader",
      [](std::string name, std::uintptr_t address, std::uint64_t size_bytes,
         const nb::object& owner) {
        return std::shared_ptr<Reader>(create_memory_reader(
            std::move(name), {at_address<const std::byte>(address), size_bytes},
            keep_alive(owner)));
      },
      "name"_a, "address"_a, "size_bytes"_a, "owner"_a,
      "A source that is memory which `owner` keeps alive.");
}

void init_options(nb::module_& module) {
  nb::enum_<Prefetch>(module, "Prefetch")
      .value("NONE", Prefetch::kNone)
      .value("NEXT", Prefetch::kNext)
      .value("AHEAD", Prefetch::kAhead)
      .value("READ_AHEAD", Prefetch::kReadAhead)
      .value("ADAPTIVE", Prefetch::kAdaptive);
  nb::enum_<ComputePlace>(module, "ComputePlace")
      .value("HOST", ComputePlace::kHost)
      .value("ACCELERATOR", ComputePlace::kAccelerator);
  module.def("prefetch_for", &prefetch_for, "prefetch"_a, "backend"_a,
             "What a prefetch means for files that are read so.");
  module.attr("ACTIVATION_SHARE") = kActivationShare;
  nb::enum_<ResidentUse>(module, "ResidentUse")
      .value("SETTLED", ResidentUse::kSettled)
      .value("LEASED", ResidentUse::kLeased);
  nb::class_<EngineOptions>(module, "EngineOptions")
      .def(nb::init<>())
      .def_rw("residents", &EngineOptions::residents)
      .def_rw("reserved_share", &EngineOptions::reserved_share)
      .def_prop_rw(
          "link_bytes_per_second",
          [](const EngineOptions& self) { return self.rates.link_bytes_per_second; },
          [](EngineOptions& self, double rate) { self.rates.link_bytes_per_second = rate; })
      .def_prop_rw(
          "host_call_seconds",
          [](const EngineOptions& self) { return self.rates.host_call_seconds; },
          [](EngineOptions& self, double seconds) { self.rates.host_call_seconds = seconds; })
      .def_prop_rw(
          "disk_bytes_per_second",
          [](const EngineOptions& self) { return self.rates.disk_bytes_per_second; },
          [](EngineOptions& self, double rate) { self.rates.disk_bytes_per_second = rate; })
      .def_rw("prefetch", &EngineOptions::prefetch)
      .def_rw("ram_budget", &EngineOptions::ram_budget)
      .def_rw("compression", &EngineOptions::compression, nb::arg().none(),
              "A level from 1 to 9, 0 for not at all, None for what pays.");
}

void init_leasing(nb::class_<BoundEngine>& engine) {
  engine
      .def(nb::init<std::shared_ptr<Device>, std::shared_ptr<Budget>, const ModelTree&,
                    const Grouping&, std::vector<std::shared_ptr<Reader>>, EngineOptions>(),
           "device"_a, "budget"_a, "tree"_a, "grouping"_a, "sources"_a, "options"_a, Unlocked())
      .def(
          "places", &places, "group"_a, "on"_a,
          "One uint8 array a tensor of a group: its device memory, valid while the group is leased "
          "or resident.")
      .def(
          "acquire",
          [](BoundEngine& self, GroupId group, std::uintptr_t stream) -> std::uint32_t {
            if (!self.engine().acquire(group, self.stream(stream))) return 0;
            return self.engine().place_number(group);
          },
          "group"_a, "stream"_a = 0, Unlocked(),
          "Takes a lease for work of a stream, and gives the number of the group's place; 0, and "
          "no "
          "lease, where it has none now.")
      .def(
          "release",
          [](BoundEngine& self, GroupId group, std::uintptr_t stream) {
            self.engine().release(group, self.stream(stream));
          },
          "group"_a, "stream"_a = 0, Unlocked())
      .def("on_lease", &on_lease, "group"_a, "stream"_a, "call"_a,
           "What call() gives while a lease of the group is held for a stream, whatever it raises; "
           "None, and no call, where the group has no place now.")
      .def(
          "place_number",
          [](BoundEngine& self, GroupId group) { return self.engine().place_number(group); },
          "group"_a, Unlocked(), "Another one each time that the group's place moves.")
      .def(
          "has_own_place",
          [](BoundEngine& self, GroupId group) { return self.engine().has_own_place(group); },
          "group"_a, Unlocked(), "Whether no other group shares the group's place.")
      .def_prop_ro("place_moves", [](BoundEngine& self) { return self.engine().place_moves(); })
      .def(
          "release_all",
          [](BoundEngine& self, std::uintptr_t stream) {
            self.engine().release_all(self.stream(stream));
          },
          "stream"_a = 0, Unlocked());
}

void init_budget(nb::class_<BoundEngine>& engine) {
  engine
      .def(
          "settled", [](BoundEngine& self, GroupId group) { return self.engine().settled(group); },
          "group"_a, Unlocked(), "Whether a group is resident and used without leases.")
      .def(
          "settled_under",
          [](BoundEngine& self, std::uint64_t limit_bytes) {
            return self.engine().settled_under(limit_bytes);
          },
          "limit_bytes"_a, Unlocked(), "Which groups set_budget() would settle.")
      .def(
          "set_budget",
          [](BoundEngine& self, std::uint64_t limit_bytes, const nb::callable& check) {
            const auto ask = [&check] {
              const nb::gil_scoped_acquire locked;
              if (PyErr_CheckSignals() != 0) throw nb::python_error();
              check();
            };
            unlocked([&] { self.engine().set_budget(limit_bytes, {.check = ask}); });
          },
          "limit_bytes"_a, "check"_a,
          "Moves the ceiling and the groups with it; nobody uses the engine meanwhile, but leases "
          "that others have are waited for. `check` is called often then, and may raise.")
      .def(
          "give_way",
          [](BoundEngine& self, std::uint64_t wanted_bytes) {
            return self.engine().give_way(wanted_bytes);
          },
          "wanted_bytes"_a, Unlocked(), "Frees bytes of leased residents; returns how many.")
      .def(
          "take_back",
          [](BoundEngine& self, std::uint64_t spared_bytes) {
            return self.engine().take_back(spared_bytes);
          },
          "spared_bytes"_a, Unlocked(),
          "Makes residents that gave way resident again where so much stays free; returns how many "
          "bytes.");
}

void init_homes(nb::class_<BoundEngine>& engine) {
  engine
      .def(
          "bring_home", [](BoundEngine& self, GroupId group) { self.engine().bring_home(group); },
          "group"_a, Unlocked(),
          "Moves a group's bytes into pinned host memory, from which it is loaded.")
      .def(
          "groups_to_bring_home",
          [](BoundEngine& self) { return self.engine().groups_to_bring_home(); }, Unlocked(),
          "The groups to bring home, as far as host memory has room, the most useful first.")
      .def(
          "plan_anew", [](BoundEngine& self) { return self.engine().plan_anew(); }, Unlocked(),
          "Plans anew by what homes turned out to take; False where nothing was changed.")
      .def("home", &home, "tensor"_a, "size_bytes"_a, "on"_a,
           "A tensor's bytes in its group's home, as kernels see them, or None.")
      .def(
          "note_write",
          [](BoundEngine& self, TensorId tensor, std::uintptr_t stream) {
            self.engine().note_write(tensor, self.stream(stream));
          },
          "tensor"_a, "stream"_a, Unlocked(),
          "Says that work of a stream writes to a tensor's home.");
}

void init_bytes(nb::class_<BoundEngine>& engine) {
  engine
      .def(
          "read_tensor",
          [](BoundEngine& self, TensorId tensor, std::uintptr_t address, std::uint64_t size_bytes) {
            self.engine().read_tensor(tensor, {at_address(address), size_bytes});
          },
          "tensor"_a, "address"_a, "size_bytes"_a, Unlocked(),
          "Writes a tensor's true bytes to host memory.")
      .def(
          "read_rows",
          [](BoundEngine& self, TensorId tensor, std::uintptr_t indices, std::uint64_t count,
             std::uint64_t row_bytes, std::uintptr_t address) {
            self.engine().read_rows(tensor, {at_address<const std::int64_t>(indices), count},
                                    row_bytes, {at_address(address), count * row_bytes});
          },
          "tensor"_a, "indices"_a, "count"_a, "row_bytes"_a, "address"_a, Unlocked(),
          "Writes rows of a tensor, given as int64 indices by address, to host memory.")
      .def(
          "holds",
          [](BoundEngine& self, TensorId tensor, std::uintptr_t address, std::uint64_t size_bytes) {
            return self.engine().tensor_equals(tensor,
                                               {at_address<const std::byte>(address), size_bytes});
          },
          "tensor"_a, "address"_a, "size_bytes"_a, Unlocked(),
          "Whether host memory equals a tensor's true bytes.")
      .def(
          "replace_tensor",
          [](BoundEngine& self, TensorId tensor, std::uintptr_t address, std::uint64_t size_bytes,
             const nb::object& owner) {
            auto kept = keep_alive(owner);
            unlocked([&] {
              self.engine().replace_tensor(
                  tensor, {at_address<const std::byte>(address), size_bytes}, std::move(kept));
            });
          },
          "tensor"_a, "address"_a, "size_bytes"_a, "owner"_a, "Makes host memory a tensor's bytes.")
      .def_prop_ro(
          "plan", [](BoundEngine& self) { return self.engine().plan(); }, Unlocked())
      .def("statistics", [](BoundEngine& self) { return self.engine().statistics(); }, Unlocked());
}

void init_ceiling(nb::module_& module, nb::class_<BoundEngine>& engine) {
  nb::enum_<Pressure>(module, "Pressure")
      .value("STRICT", Pressure::kStrict)
      .value("ADAPTIVE", Pressure::kAdaptive)
      .value("LENIENT", Pressure::kLenient);
  nb::class_<Refusal>(module, "Refusal")
      .def_ro("message", &Refusal::message)
      .def_ro("needed_bytes", &Refusal::needed_bytes)
      .def_ro("budget_bytes", &Refusal::budget_bytes);
  nb::class_<CeilingStatistics>(module, "CeilingStatistics")
      .def_ro("torch_bytes", &CeilingStatistics::torch_bytes)
      .def_ro("peak_torch_bytes", &CeilingStatistics::peak_torch_bytes)
      .def_ro("beyond_bytes", &CeilingStatistics::beyond_bytes)
      .def_ro("refusals", &CeilingStatistics::refusals);
  nb::class_<Ceiling>(module, "Ceiling")
      .def("enter", &Ceiling::enter, Unlocked(),
           "From here on torch's requests of this thread are charged here.")
      .def("leave", &Ceiling::leave, Unlocked())
      .def("keep_for_small_segments", &Ceiling::keep_for_small_segments, Unlocked(),
           "Leaves room for what torch gives no large block back for: it splits none from here on.")
      .def("take_refusal", &Ceiling::take_refusal, Unlocked(),
           "Why a request was refused since this was asked, or None.")
      .def("forward_ended", &Ceiling::forward_ended, Unlocked(),
           "Lets residents come back where it is time; whether torch is to give memory back.")
      .def("statistics", &Ceiling::statistics, Unlocked());
  engine.def("ceiling", &BoundEngine::ceiling, "pressure"_a, "device_index"_a,
             "The ceiling over what torch allocates in this engine's forwards.");
}

}  // namespace

void init_engine(nb::module_& module) {
  init_device(module);
  init_backends(module);
  init_readers(module);
  init_options(module);
  init_statistics(module);
  nb::class_<BoundEngine> engine(module, "Engine");
  init_leasing(engine);
  init_budget(engine);
  init_ceiling(module, engine);
  init_homes(engine);
  init_bytes(engine);
}

}  // namespace tensorstream
