#include "store/pack.h"

#include <filesystem>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "platform/file_lease.h"
#include "platform/output_file.h"
#include "store/carried_files.h"
#include "store/checkpoint.h"
#include "store/checkpoint_file.h"
#include "store/packed_index.h"
#include "store/relative_path.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "store/staged_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".safetensors";

struct Shard {
  /// Below the source's folder.
  std::string name;
  PackSource source;
};

/// What is packed, opened.
struct PackJob {
  fs::path folder;
  std::vector<Shard> shards;
  std::optional<OriginalIndex> index;
  std::optional<File> index_file;
  std::vector<CarriedFile> carried;
};

std::string read_index(const File& file) {
  check_no_writer(file);
  std::string text(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  file.check_unchanged();
  return text;
}

[[noreturn]] void refuse_name(const PackJob& job, const std::string& name,
                              const std::string& fault) {
  throw UnsupportedError("'" + shown((job.folder / name).string()) + "' cannot be packed: " +
                         fault + "; rename it, or pack a folder without it");
}

/// Refuses names that the packed format cannot hold, before a byte is written.
void check_names(const PackJob& job) {
  std::set<std::string> packed;
  std::vector<std::string> names;
  for (const Shard& shard : job.shards) {
    packed.insert(packed_name(shard.name));
    names.push_back(shard.name);
  }
  if (job.index) names.push_back(job.index->name);
  for (const CarriedFile& file : job.carried) names.push_back(file.name);
  for (const Shard& shard : job.shards) {
    // Its packed file beside the other's would look like plain weights beside packed ones.
    if (packed.contains(shard.name)) {  // guard: shard-named-as-packed
      refuse_name(job, shard.name, "another shard's packed file would have that name");
    }
  }
  for (const std::string& name : names) {
    static_cast<void>(json_string(name));  // raises where it is not UTF-8
    // guard: name-of-packed-path
    if (const auto fault = relative_path_fault(name)) refuse_name(job, name, "its path " + *fault);
    // end guard
  }
  for (const CarriedFile& file : job.carried) {
    const bool beside = file.name.find('/') == std::string::npos;
    const bool ours = file.name == kPackedIndexName ||
                      (unpacked_name(file.name) && file.name.ends_with(kExtension));
    // guard: name-of-packed-file
    if (packed.contains(file.name) || (beside && ours)) {
      refuse_name(job, file.name, "the name is one of the packed format's own");
    }
    // end guard
  }
}

/// Raises IoError where the paths of what is packed do not lead to what was opened of it.
void check_source(const PackJob& job) {
  for (const Shard& shard : job.shards) {
    shard.source.file.check_unchanged();  // guard: packed-unchanged
    shard.source.file.check_in_place();   // guard: packed-in-place
  }
  if (!job.index_file) return;
  job.index_file->check_unchanged();
  job.index_file->check_in_place();  // guard: packed-index-in-place
}

PackJob open_job(const std::string& source) {
  const CheckpointFile found = find_checkpoint_file(source);
  PackJob job;
  job.folder = fs::path(found.path).parent_path();
  std::set<std::string> packed;
  if (found.kind == CheckpointKind::kIndex) {
    const std::string name = fs::path(found.path).filename().string();
    job.index_file = File::open_for_reading(found.path);
    job.index = {name, read_index(*job.index_file)};
    packed.insert(name);
  }
  // All rules of an index and its shards, before a byte is written.
  const Checkpoint checkpoint = Checkpoint::open(found.path);
  if (checkpoint.packed()) {
    throw UnsupportedError("'" + checkpoint.files().front() +
                           "' is packed already; tensorstream.unpack gives its files");
  }
  if (checkpoint.tensors().empty()) {  // guard: pack-no-tensors
    throw ConfigError(
        "'" + found.path +
        "' holds no tensors: there is nothing to pack; give the checkpoint that does");
  }
  for (std::size_t i = 0; i < checkpoint.files().size(); ++i) {
    const std::string& path = checkpoint.files()[i];
    const std::string name = fs::path(path).lexically_relative(job.folder).string();
    if (!name.ends_with(kExtension)) {
      throw ConfigError("'" + path + "' cannot be packed: its name does not end in '" +
                        std::string(kExtension) + "'; rename it, or make a link that does");
    }
    job.shards.push_back({name, open_pack_source(path)});
    if (!job.shards.back().source.file.identity().is_as(checkpoint.identities()[i])) {
      throw IoError(
          "'" + shown(path) + "' changed as it was opened; pack it when nobody writes there", path,
          0, 0);
    }
    packed.insert(name);
  }
  if (fs::is_directory(source)) job.carried = list_carried_files(source, packed);
  check_names(job);
  check_source(job);  // the index, of which the shards' names are
  return job;
}

struct JobSize {
  std::uint64_t read_bytes = 0;
  std::uint64_t bound_bytes = 0;
};

JobSize size_of(const PackJob& job) {
  // Of the index, for each tensor at most its name, escaped, and its shard's.
  constexpr std::uint64_t kIndexRowBytes = 1024;
  JobSize size;
  for (const Shard& shard : job.shards) {
    for (const StoredTensor& tensor : shard.source.tensors) size.read_bytes += tensor.size_bytes;
    size.bound_bytes += packed_bound(shard.source) + shard.source.tensors.size() * kIndexRowBytes;
  }
  if (job.index) size.bound_bytes += 2 * job.index->text.size();
  for (const CarriedFile& file : job.carried) {
    size.read_bytes += file.size_bytes;
    size.bound_bytes += file.size_bytes + kIndexRowBytes;
  }
  return size;
}

/// By what a run that goes on knows that an earlier one was at the same: format, level, and of each
/// shard the state of its file.
StagedWork work_of(const PackJob& job, const PackOptions& options) {
  StagedWork work;
  work.description = "tensorstream pack 1, level " + std::to_string(options.level.number()) + "\n";
  for (const Shard& shard : job.shards) {
    const FileIdentity& file = shard.source.file.identity();
    work.description += json_string(shard.name);
    for (const std::uint64_t number :
         {file.device, file.inode, file.size_bytes, static_cast<std::uint64_t>(file.modified_ns),
          static_cast<std::uint64_t>(file.changed_ns)}) {
      work.description += " " + std::to_string(number);
    }
    work.description += "\n";
    work.files.insert(packed_name(shard.name));
  }
  return work;
}

/// The shard, packed: by an earlier run that was killed, or now.
PackedFileSummary pack_shard(const Shard& shard, const StagedFolder& folder,
                             const PackOptions& options, Progress& progress) {
  const std::string name = packed_name(shard.name);
  const std::string path = folder.path_of(name);
  if (folder.has_left(name)) {
    if (auto found = find_packed_file(shard.source, path, options.threads)) {
      for (const StoredTensor& tensor : shard.source.tensors) progress.add(tensor.size_bytes);
      return *std::move(found);
    }
    folder.discard(name);
  }
  return write_packed_file(shard.source, path, options, progress);
}

void write_file(const std::string& path, std::string_view text) {
  const OutputFile file = OutputFile::create(path);
  file.write_at(0, std::as_bytes(std::span(text)));
  file.sync();
}

void write_index(StagedFolder& folder, const PackedIndex& index, const std::string& source) {
  const std::string text = packed_index_text(index);
  if (text.size() > kLargestIndexBytes) {
    throw UnsupportedError("'" + source + "' cannot be packed: its packed index would have " +
                           std::to_string(text.size()) + " bytes, more than the " +
                           std::to_string(kLargestIndexBytes) + " that an index may have");
  }
  write_file(folder.path_of(kPackedIndexName), text);
  folder.add(kPackedIndexName, text.size());
}

}  // namespace

CheckpointSummary pack_checkpoint(const std::string& source, const std::string& target,
                                  const PackOptions& options, const ProgressSink& sink) {
  const PackJob job = open_job(source);
  const JobSize size = size_of(job);
  StagedFolder folder(target, size.bound_bytes, work_of(job, options));
  Progress progress(sink, size.read_bytes);
  PackedIndex index;
  index.original = job.index;
  CheckpointSummary summary;
  for (const Shard& shard : job.shards) {
    const std::string name = packed_name(shard.name);
    const PackedFileSummary written = pack_shard(shard, folder, options, progress);
    check_no_writer(shard.source.file);  // guard: packed-no-writer
    folder.add(name, written.size_bytes);
    for (const std::string& tensor : written.names) index.stored.emplace(tensor, name);
    index.seals.emplace(name, written.seal);
    index.total_bytes += written.size_bytes;
    summary.files += 1;
    summary.tensors += written.tensors;
    summary.encoded_tensors += written.encoded_tensors;
    summary.original_bytes += shard.source.file.size_bytes();
  }
  for (const CarriedFile& file : job.carried) {
    CarriedFile copied =
        copy_carried_file((job.folder / file.name).string(), folder.path_of(file.name), progress);
    folder.add(file.name, copied.size_bytes);
    copied.name = file.name;
    index.carried.push_back(std::move(copied));
  }
  summary.stored_bytes = index.total_bytes;
  write_index(folder, index, source);
  check_source(job);
  check_still_there(job.folder, index.carried);  // guard: packed-folder
  progress.finish();
  folder.publish();
  return summary;
}

}  // namespace tensorstream
