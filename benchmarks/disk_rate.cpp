// Question: does the disk engine read a file as fast as fio does at the best of its settings?
//
// Method: one file of random bytes, read from its beginning to its end past the page cache (so a
// warm cache plays no part). First each setting of both programs is tried in turn, round by round;
// then the best of fio's runs against the engine as it is used, alternately, the one that begins
// changing: medians and spread of both, and of the ratio within each pair, since a shared disk's
// rate moves from minute to minute. The engine reads into a ring of 16 MiB, 4 MiB at a time, three
// reads under way: about what fio's best settings take of memory, which counts where a virtual
// disk's host copies into it by a core. "wide" is a ring of 64 MiB, as a load through staging has.
// "shifted" reads the same bytes to addresses that no disk takes, so that all of them go through
// the queue's own memory. fio's buffers are in huge pages as ours are: a disk takes a request in so
// many parts, and single pages make it many small ones.
//
// disk_rate FILE [--size-mib N] [--rounds N] [--pairs N] [--output FILE]      (needs the Debian
// package fio: scripts/install_debian_packages.sh disk)
#include <sys/resource.h>
#include <sys/utsname.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <ctime>
#include <deque>
#include <fstream>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/units.h"
#include "io/disk_queue.h"
#include "platform/io_ring.h"
#include "platform/mapping.h"

namespace tensorstream {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kReadBytes = 4_MiB;
constexpr std::uint64_t kWideReadBytes = 16_MiB;
constexpr std::size_t kPlaces = 4;

struct Options {
  std::string file;
  std::string output;
  std::uint64_t size_bytes = 2_GiB;
  int rounds = 3;
  int pairs = 15;
};

/// A way to read the file; gives bytes a second.
struct Way {
  std::string name;
  std::function<double()> read;
  std::vector<double> rates;
};

double median(std::vector<double> values) {
  std::ranges::sort(values);
  const std::size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

Json summary(const std::vector<double>& values) {
  return {{"median", median(values)},
          {"min", std::ranges::min(values)},
          {"max", std::ranges::max(values)},
          {"all", values}};
}

/// The first line of a file of the system's; empty where there is none.
std::string line_of(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

/// What is measured on, and what else ran there.
Json machine() {
  utsname system{};
  ::uname(&system);
  const std::time_t now = std::time(nullptr);
  std::array<char, 32> date{};
  std::strftime(date.data(), date.size(), "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&now));
  return {{"kernel", system.release},
          {"processors", std::thread::hardware_concurrency()},
          {"load_at_start", line_of("/proc/loadavg")},
          {"date", date.data()}};
}

double processor_seconds() {
  rusage usage{};
  ::getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

void write_file(const Options& options) {
  std::ofstream file(options.file, std::ios::binary);
  std::mt19937_64 random(1);
  std::vector<std::uint64_t> words(1_MiB / sizeof(std::uint64_t));
  for (std::uint64_t done = 0; done < options.size_bytes; done += 1_MiB) {
    std::ranges::generate(words, random);
    file.write(reinterpret_cast<const char*>(words.data()), 1_MiB);
  }
  file.close();
  if (!file) throw std::runtime_error("cannot write " + options.file);
}

bool is_there(const Options& options) {
  std::ifstream file(options.file, std::ios::binary | std::ios::ate);
  return file && static_cast<std::uint64_t>(file.tellg()) >= options.size_bytes;
}

/// The file read by fio; its own measure of the rate.
double read_by_fio(const Options& options, const std::string& engine, std::uint64_t request_bytes,
                   std::size_t depth) {
  const bool threads = engine.starts_with("psync");
  const std::uint64_t part = options.size_bytes / (threads ? depth : 1);
  const std::string command =
      "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 fio --name=read --filename=" + options.file +
      " --rw=read --direct=1 --ioengine=" + engine + " --bs=" + std::to_string(request_bytes) +
      " --size=" + std::to_string(part) +
      (threads ? " --thread --group_reporting --numjobs=" + std::to_string(depth) +
                     " --offset_increment=" + std::to_string(part)
               : " --iodepth=" + std::to_string(depth)) +
      " --output-format=json";
  std::string text;
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen(command.c_str(), "r"), ::pclose);
  if (pipe == nullptr) throw std::runtime_error("cannot run fio");
  std::array<char, 4096> buffer{};
  while (const std::size_t count = std::fread(buffer.data(), 1, buffer.size(), pipe.get())) {
    text.append(buffer.data(), count);
  }
  const std::size_t begin = text.find('{');
  if (begin == std::string::npos) throw std::runtime_error("fio gave no result: " + text);
  const Json result = Json::parse(text.substr(begin));
  return result.at("jobs").at(0).at("read").at("bw_bytes").get<double>();
}

/// The file read by a queue, by the time from the first begin() to the last wait().
double read_by(DiskQueue& queue, const std::shared_ptr<const DiskFile>& file,
               const Options& options, const Mapping& memory, std::uint64_t read_bytes,
               std::uint64_t shift_bytes) {
  const auto start = Clock::now();
  std::deque<PendingRead> ahead;
  for (std::uint64_t done = 0; done < options.size_bytes; done += read_bytes) {
    const std::uint64_t size = std::min(read_bytes, options.size_bytes - done);
    std::byte* const target = memory.data() + done / read_bytes % kPlaces * read_bytes;
    ahead.push_back(queue.begin(file, done, {target + shift_bytes, size}));
    if (ahead.size() == kPlaces - 1) {
      ahead.front().wait();
      ahead.pop_front();
    }
  }
  while (!ahead.empty()) {
    ahead.front().wait();
    ahead.pop_front();
  }
  return static_cast<double>(options.size_bytes) / seconds_since(start);
}

std::string name_of(const std::string& who, std::uint64_t request_bytes, std::size_t depth) {
  return who + " " + format_size(request_bytes) + " x " + std::to_string(depth);
}

class DiskRate {
 public:
  explicit DiskRate(const Options& options)
      : options_(options),
        file_(std::make_shared<const DiskFile>(DiskFile::open_direct(options.file))),
        memory_(Mapping::anonymous(kPlaces * kWideReadBytes + 4_KiB)) {}

  Json run() {
    std::vector<Way> ways = all_ways();
    for (int round = 0; round < options_.rounds; ++round) {
      for (Way& way : ways) way.rates.push_back(way.read());
    }
    Json result = about();
    for (const Way& way : ways) {
      result["settings"][way.name] = summary(way.rates);
      std::printf("%-36s %s\n", way.name.c_str(), show(way.rates).c_str());
    }
    duel(result, best_of_fio(ways));
    return result;
  }

 private:
  static std::string show(const std::vector<double>& rates) {
    std::array<char, 96> text{};
    std::snprintf(text.data(), text.size(), "%6.2f GB/s (%.2f to %.2f)", median(rates) / 1e9,
                  std::ranges::min(rates) / 1e9, std::ranges::max(rates) / 1e9);
    return text.data();
  }

  Json about() const {
    return {{"question", "rate of the disk engine against fio at the best of its settings"},
            {"machine", machine()},
            {"size_bytes", options_.size_bytes},
            {"page_cache", "not used: O_DIRECT on both sides"},
            {"block_bytes", file_->block_bytes()},
            {"memory_alignment_bytes", file_->memory_alignment_bytes()},
            {"io_uring", IoRing::refusal().value_or("works")}};
  }

  std::vector<Way> all_ways() const {
    std::vector<Way> ways;
    const bool rings = !IoRing::refusal();
    for (const std::uint64_t request : {512_KiB, 1_MiB, 2_MiB, 4_MiB}) {
      for (const std::size_t depth : {std::size_t{4}, std::size_t{8}, std::size_t{16}}) {
        for (const std::string fio : {rings ? "io_uring" : "psync",
                                      rings ? "io_uring --fixedbufs" : "psync --group_reporting"}) {
          ways.push_back({name_of("fio " + fio, request, depth),
                          [=, this] { return read_by_fio(options_, fio, request, depth); },
                          {}});
        }
        if (rings) ways.push_back(way_of("ring", create_ring_transfers, request, depth));
        ways.push_back(way_of("threads", create_thread_transfers, request, depth));
      }
    }
    return ways;
  }

  Way way_of(const std::string& name, std::unique_ptr<TransferQueue> (*create)(std::size_t),
             std::uint64_t request, std::size_t depth) const {
    return {name_of(name, request, depth),
            [=, this] {
              const auto queue = DiskQueue::create(create(depth), request);
              return read_by(*queue, file_, options_, memory_, kWideReadBytes, 0);
            },
            {}};
  }

  static const Way& best_of_fio(const std::vector<Way>& ways) {
    const Way* best = nullptr;
    for (const Way& way : ways) {
      if (!way.name.starts_with("fio")) continue;
      if (best == nullptr || median(way.rates) > median(best->rates)) best = &way;
    }
    return *best;
  }

  void duel(Json& result, const Way& fio) const {
    const auto create = IoRing::refusal() ? create_thread_transfers : create_ring_transfers;
    const auto queue = DiskQueue::create(create(DiskQueue::kDepth));
    struct Side {
      std::string name;
      std::uint64_t read_bytes, shift_bytes;
      std::vector<double> rates, ratios;
      double processor_seconds = 0;
    };
    std::array<Side, 3> sides = {Side{"engine", kReadBytes, 0, {}, {}},
                                 Side{"engine, shifted", kReadBytes, 8, {}, {}},
                                 Side{"engine, wide", kWideReadBytes, 0, {}, {}}};
    std::vector<double> fio_rates;
    const auto read_ours = [&](Side& side) {
      const double before = processor_seconds();
      side.rates.push_back(
          read_by(*queue, file_, options_, memory_, side.read_bytes, side.shift_bytes));
      side.processor_seconds += processor_seconds() - before;
    };
    for (int pair = 0; pair < options_.pairs; ++pair) {
      if (pair % 2 == 0) fio_rates.push_back(fio.read());
      for (Side& side : sides) read_ours(side);
      if (pair % 2 == 1) fio_rates.push_back(fio.read());
      for (Side& side : sides) side.ratios.push_back(side.rates.back() / fio_rates.back());
    }
    result["pairs"] = {{"fio", {{"setting", fio.name}, {"bytes_per_second", summary(fio_rates)}}}};
    std::printf("\n%-36s %s\n", fio.name.c_str(), show(fio_rates).c_str());
    const double gigabytes = static_cast<double>(options_.size_bytes) * options_.pairs / 1e9;
    for (const Side& side : sides) {
      result["pairs"][side.name] = {
          {"setting", name_of("queue", queue->request_bytes(), queue->depth())},
          {"bytes_per_second", summary(side.rates)},
          {"ratio_to_fio_in_pairs", summary(side.ratios)},
          {"ratio_of_medians", median(side.rates) / median(fio_rates)},
          {"processor_seconds_per_gb", side.processor_seconds / gigabytes}};
      std::printf("%-36s %s, %.3f x fio (pairs; %.3f by medians), %.3f core seconds a GB\n",
                  side.name.c_str(), show(side.rates).c_str(), median(side.ratios),
                  median(side.rates) / median(fio_rates), side.processor_seconds / gigabytes);
    }
  }

  const Options options_;
  const std::shared_ptr<const DiskFile> file_;  // shared with reads under way
  const Mapping memory_;
};

Options options_of(int count, char** arguments) {
  Options options;
  if (count < 2 || count % 2 != 0) throw std::runtime_error("give a file, and pairs of options");
  options.file = arguments[1];
  for (int i = 2; i < count; i += 2) {
    const std::string name = arguments[i];
    const std::string value = arguments[i + 1];
    if (name == "--output") {
      options.output = value;
    } else if (name == "--size-mib") {
      options.size_bytes = std::stoull(value) * 1_MiB;
    } else if (name == "--rounds") {
      options.rounds = std::stoi(value);
    } else if (name == "--pairs") {
      options.pairs = std::stoi(value);
    } else {
      throw std::runtime_error("unknown option " + name);
    }
  }
  return options;
}

}  // namespace
}  // namespace tensorstream

int main(int count, char** arguments) {
  using namespace tensorstream;
  try {
    const Options options = options_of(count, arguments);
    if (!is_there(options)) write_file(options);
    const Json result = DiskRate(options).run();
    if (!options.output.empty()) std::ofstream(options.output) << result.dump(2) << '\n';
  } catch (const std::exception& error) {
    std::fprintf(stderr, "disk_rate: %s\n", error.what());
    return 1;
  }
  return 0;
}
