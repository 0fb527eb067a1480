// Question: how many pieces of what size keep a disk busy that is read through a staging ring?
//
// Method: one file of random bytes, read past the page cache as loads of a model's groups would be:
// groups of 100 MiB in turn go through the ring into memory of a host device, whose stream copies
// them. Between two groups the reader is kept from its work for as long as a group takes that comes
// from host memory over a link, so that only what is read ahead keeps the disk busy. Each setting
// in turn, round by round, and in each round the disk by itself (eight reads of 4 MiB at a time):
// medians and spread of the rates and of their ratio to the disk's in the same round. "nothing
// ahead" is told of no next group.
//
// staged_rate FILE [--rounds N]       FILE: a GiB or more, of any content
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "device/host_device.h"
#include "engine/disk_rate.h"
#include "engine/load.h"
#include "engine/staged_reader.h"
#include "io/file_opener.h"
#include "platform/mapping.h"

namespace tensorstream {
namespace {

constexpr std::uint64_t kGroupBytes = 100_MiB;
// A group of 400 MB from pinned memory at 55 GB/s.
constexpr std::chrono::milliseconds kPause{8};

struct Setting {
  std::uint64_t piece_bytes;
  std::size_t pieces;
  bool ahead;
  std::vector<double> ratios{};
};

class Groups {
 public:
  explicit Groups(const std::string& path)
      : reader_(open_file_reader(path, FileBackend::kDirect)),
        place_(Mapping::anonymous(kGroupBytes)) {
    if (count() < 5) throw std::runtime_error("the file is too small");
  }

  std::uint64_t count() const { return reader_->size_bytes() / kGroupBytes; }
  void add_to(Load& load, std::uint64_t group) const {
    load.add({reader_, group * kGroupBytes, kGroupBytes}, place_.data(), 16_MiB);
  }
  std::vector<StagedRead> reads(std::uint64_t group, std::uint64_t piece_bytes) const {
    Load load(0, Load::Reads::kStaged);
    if (group < count()) add_to(load, group);
    return load.staged_reads(piece_bytes);
  }

 private:
  const std::shared_ptr<Reader> reader_;
  const Mapping place_;
};

/// Bytes a second, without the pauses.
double rate_of(const Groups& groups, const Setting& setting) {
  const auto device = create_host_device({});
  const auto stream = device->create_stream();
  StagingRing ring(*device, {.piece_bytes = setting.piece_bytes, .pieces = setting.pieces});
  StagedReader staged(ring);
  const Clock::time_point start = Clock::now();
  for (std::uint64_t group = 0; group < groups.count(); ++group) {
    Load load(0, Load::Reads::kStaged);
    groups.add_to(load, group);
    const auto next =
        setting.ahead ? groups.reads(group + 1, setting.piece_bytes) : std::vector<StagedRead>();
    staged.send(load, *stream, next);
    if (load.error()) std::rethrow_exception(load.error());
    while (staged.read_ahead(next)) {
    }
    std::this_thread::sleep_for(kPause);
  }
  stream->synchronize();
  return static_cast<double>(groups.count() * kGroupBytes) / seconds_since(start);
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void show(const std::string& name, const std::vector<double>& values) {
  std::printf("%-28s %.3f (%.3f to %.3f)\n", name.c_str(), median(values), std::ranges::min(values),
              std::ranges::max(values));
}

void measure(const std::string& path, int rounds) {
  const Groups groups(path);
  std::vector<Setting> settings = {{16_MiB, 4, false}, {16_MiB, 4, true}, {8_MiB, 4, true},
                                   {8_MiB, 8, true},   {4_MiB, 16, true}, {8_MiB, 16, true},
                                   {16_MiB, 8, true}};
  std::vector<double> disk;
  for (int round = 0; round < rounds; ++round) {
    disk.push_back(measure_disk(path).value());
    for (Setting& setting : settings) {
      setting.ratios.push_back(rate_of(groups, setting) / disk.back());
    }
  }
  for (double& rate : disk) rate /= 1e9;
  show("the disk, GB/s", disk);
  for (const Setting& setting : settings) {
    show(std::to_string(setting.pieces) + " pieces of " + format_size(setting.piece_bytes) +
             (setting.ahead ? "" : ", nothing ahead"),
         setting.ratios);
  }
}

}  // namespace
}  // namespace tensorstream

int main(int argc, char** argv) {
  try {
    if (argc != 2 && (argc != 4 || std::string(argv[2]) != "--rounds")) {
      throw std::runtime_error("usage: staged_rate FILE [--rounds N]");
    }
    tensorstream::measure(argv[1], argc == 4 ? std::stoi(argv[3]) : 7);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
