#include "store/pack_job.h"

#include <set>
#include <span>
#include <utility>

#include "platform/file_lease.h"
#include "platform/output_file.h"
#include "store/checkpoint.h"
#include "store/checkpoint_file.h"
#include "store/relative_path.h"
#include "store/sealed_text.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kExtension = ".safetensors";

std::string read_index(const File& file) {
  check_no_writer(file);
  std::string text(file.size_bytes(), '\0');
  file.read_exact(0, std::as_writable_bytes(std::span(text)));
  file.check_unchanged();
  return text;
}

}  // namespace

void refuse_name(const fs::path& folder, const std::string& name, const std::string& fault) {
  throw UnsupportedError("'" + shown((folder / name).string()) + "' cannot be packed: " + fault +
                         "; rename it, or pack a folder without it");
}

void check_name(const fs::path& folder, const std::string& name) {
  static_cast<void>(json_string(name));  // raises where it is not UTF-8
  // guard: name-of-packed-path
  if (const auto fault = relative_path_fault(name)) {
    refuse_name(folder, name, "its path " + *fault);
  }
  // end guard
}

PackJob::PackJob(const std::string& source, std::string below)
    : source_(source), below_(std::move(below)) {
  const CheckpointFile found = find_checkpoint_file(source);
  folder_ = fs::path(found.path).parent_path();
  std::set<std::string> packed;
  if (found.kind == CheckpointKind::kIndex) {
    const std::string name = fs::path(found.path).filename().string();
    index_file_ = File::open_for_reading(found.path);
    packed_.original = {name, read_index(*index_file_)};
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
    open_shard(checkpoint.files()[i], checkpoint.identities()[i]);
    packed.insert(shards_.back().name);
  }
  if (fs::is_directory(source)) carried_ = list_carried_files(source, packed);
  check_names();
  check_opened();  // the index, of which the shards' names are
}

void PackJob::open_shard(const std::string& path, const FileIdentity& identity) {
  const std::string name = fs::path(path).lexically_relative(folder_).string();
  if (!name.ends_with(kExtension)) {
    throw ConfigError("'" + path + "' cannot be packed: its name does not end in '" +
                      std::string(kExtension) + "'; rename it, or make a link that does");
  }
  shards_.push_back({name, open_pack_source(path)});
  if (!shards_.back().source.file.identity().is_as(identity)) {
    throw IoError(
        "'" + shown(path) + "' changed as it was opened; pack it when nobody writes there", path, 0,
        0);
  }
}

/// Refuses names that the packed format cannot hold, before a byte is written.
void PackJob::check_names() const {
  std::set<std::string> packed;
  for (const Shard& shard : shards_) packed.insert(packed_name(shard.name));
  for (const Shard& shard : shards_) {
    // Its packed file beside the other's would look like plain weights beside packed ones.
    if (packed.contains(shard.name)) {  // guard: shard-named-as-packed
      refuse_name(folder_, shard.name, "another shard's packed file would have that name");
    }
    check_name(folder_, shard.name);
  }
  if (packed_.original) check_name(folder_, packed_.original->name);
  for (const CarriedFile& file : carried_) {
    check_name(folder_, file.name);
    const bool beside = file.name.find('/') == std::string::npos;
    const bool ours = file.name == kPackedIndexName || file.name == kPackedPipelineName ||
                      (unpacked_name(file.name) && file.name.ends_with(kExtension));
    // guard: name-of-packed-file
    if (packed.contains(file.name) || (beside && ours)) {
      refuse_name(folder_, file.name, "the name is one of the packed format's own");
    }
    // end guard
  }
}

/// Raises IoError where the paths of what is packed do not lead to what was opened of it.
void PackJob::check_opened() const {
  for (const Shard& shard : shards_) {
    shard.source.file.check_unchanged();  // guard: packed-unchanged
    shard.source.file.check_in_place();   // guard: packed-in-place
  }
  if (!index_file_) return;
  index_file_->check_unchanged();
  index_file_->check_in_place();  // guard: packed-index-in-place
}

void PackJob::check_source() const {
  check_opened();
  check_still_there(folder_, packed_.carried);  // guard: packed-folder
}

std::uint64_t PackJob::read_bytes() const {
  std::uint64_t size = carried_bytes(carried_);
  for (const Shard& shard : shards_) {
    for (const StoredTensor& tensor : shard.source.tensors) size += tensor.size_bytes;
  }
  return size;
}

std::uint64_t PackJob::bound_bytes() const {
  std::uint64_t size = carried_bytes(carried_) + carried_.size() * kIndexRowBytes;
  for (const Shard& shard : shards_) {
    size += packed_bound(shard.source) + shard.source.tensors.size() * kIndexRowBytes;
  }
  if (packed_.original) size += 2 * packed_.original->text.size();
  return size;
}

void PackJob::describe(StagedWork& work) const {
  for (const Shard& shard : shards_) {
    const FileIdentity& file = shard.source.file.identity();
    work.description += json_string(below_ + shard.name);
    for (const std::uint64_t number :
         {file.device, file.inode, file.size_bytes, static_cast<std::uint64_t>(file.modified_ns),
          static_cast<std::uint64_t>(file.changed_ns)}) {
      work.description += " " + std::to_string(number);
    }
    work.description += "\n";
    work.files.insert(below_ + packed_name(shard.name));
  }
}

/// The shard, packed: by an earlier run that was killed, or now.
PackedFileSummary PackJob::pack_shard(const Shard& shard, const StagedFolder& folder,
                                      const PackOptions& options, Progress& progress) const {
  const std::string name = below_ + packed_name(shard.name);
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

void PackJob::carry_files(StagedFolder& folder, Progress& progress) {
  packed_.carried = carry(folder_, carried_, below_, folder, progress);
}

CheckpointSummary PackJob::pack(StagedFolder& folder, const PackOptions& options,
                                Progress& progress) {
  CheckpointSummary summary;
  for (const Shard& shard : shards_) {
    const std::string name = packed_name(shard.name);
    const PackedFileSummary written = pack_shard(shard, folder, options, progress);
    check_no_writer(shard.source.file);  // guard: packed-no-writer
    folder.add(below_ + name, written.size_bytes);
    for (const std::string& tensor : written.names) packed_.stored.emplace(tensor, name);
    packed_.seals.emplace(name, written.seal);
    packed_.total_bytes += written.size_bytes;
    summary.files += 1;
    summary.tensors += written.tensors;
    summary.encoded_tensors += written.encoded_tensors;
    summary.original_bytes += shard.source.file.size_bytes();
  }
  summary.stored_bytes = packed_.total_bytes;
  write_index(folder);
  return summary;
}

void PackJob::write_index(StagedFolder& folder) {
  const std::string text = packed_index_text(packed_);
  packed_.seal = seal_of(text, kSealedIndexStart);
  write_index_text(folder, below_ + kPackedIndexName, text, source_);
}

std::vector<CarriedFile> carry(const fs::path& source, const std::vector<CarriedFile>& files,
                               const std::string& below, StagedFolder& folder, Progress& progress) {
  std::vector<CarriedFile> carried;
  for (const CarriedFile& file : files) {
    const std::string name = below + file.name;
    CarriedFile copied =
        copy_carried_file((source / file.name).string(), folder.path_of(name), progress);
    folder.add(name, copied.size_bytes);
    copied.name = file.name;
    carried.push_back(std::move(copied));
  }
  return carried;
}

void write_index_text(StagedFolder& folder, const std::string& name, std::string_view text,
                      const std::string& source) {
  if (text.size() > kLargestIndexBytes) {
    throw UnsupportedError("'" + source + "' cannot be packed: its packed index would have " +
                           std::to_string(text.size()) + " bytes, more than the " +
                           std::to_string(kLargestIndexBytes) + " that an index may have");
  }
  const OutputFile file = OutputFile::create(folder.path_of(name));
  file.write_at(0, std::as_bytes(std::span(text)));
  file.sync();
  folder.add(name, text.size());
}

}  // namespace tensorstream
