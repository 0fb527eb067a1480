#include <algorithm>
#include <array>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <span>
#include <system_error>

#include "platform/output_file.h"
#include "store/carried_files.h"
#include "store/checkpoint.h"
#include "store/pack.h"
#include "store/packed_checkpoint.h"
#include "store/packed_file_reader.h"
#include "store/pipeline.h"
#include "store/shown_text.h"
#include "store/staged_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

std::uint64_t original_bytes_of(const PackedShard& shard) {
  const HeaderText& header = shard.header.original;
  return kHeaderLengthBytes + header.text.size() + header.data_bytes;
}

CheckpointSummary summary_of(const PackedWhole& packed) {
  CheckpointSummary summary;
  for (const PackedWhole::Part& part : packed.parts) {
    for (const PackedShard& shard : part.checkpoint.shards) {
      summary.files += 1;
      summary.tensors += shard.header.tensors.size();
      summary.encoded_tensors += static_cast<std::uint64_t>(std::ranges::count_if(
          shard.header.tensors, [](const PackedTensor& tensor) { return tensor.encoded; }));
      summary.original_bytes += original_bytes_of(shard);
      summary.stored_bytes += shard.file.size_bytes();
    }
  }
  return summary;
}

/// All bytes that come of it: shards, indexes, the carried files.
std::uint64_t unpacked_bytes(const PackedWhole& packed) {
  std::uint64_t size = summary_of(packed).original_bytes + carried_bytes(packed.rest);
  for (const PackedWhole::Part& part : packed.parts) {
    const std::optional<PackedIndex>& index = part.checkpoint.index;
    if (!index) continue;
    if (index->original) size += index->original->text.size();
    size += carried_bytes(index->carried);
  }
  return size;
}

void write_shard(const PackedShard& shard, const std::string& path, unsigned threads,
                 Progress& progress) {
  const OutputFile out = OutputFile::create(path);
  const std::string& text = shard.header.original.text;
  std::array<std::byte, kHeaderLengthBytes> length{};
  for (std::size_t i = 0; i < length.size(); ++i) {
    length[i] = static_cast<std::byte>(text.size() >> (8 * i));
  }
  out.write_at(0, length);
  out.write_at(length.size(), std::as_bytes(std::span(text)));
  const PartSink sink = [&](const PackedTensor& tensor, std::uint64_t offset_bytes,
                            std::span<const std::byte> bytes) {
    out.write_at(tensor.original.offset_bytes + offset_bytes, bytes);
  };
  scan_packed_file(shard.file, shard.header, threads, sink, progress);
  out.sync();
}

/// Where a carried file is; refused where it is gone.
std::string carried_path(const fs::path& folder, const CarriedFile& carried) {
  std::string path = (folder / carried.name).string();
  std::error_code ignored;
  if (fs::status(path, ignored).type() != fs::file_type::not_found) return path;
  throw FormatError(path, "",
                    std::string("carried file: it is not there any more; ") + kCarriedAdvice);
}

/// Copies files that were carried along from `source` to `below` in the staged folder.
void write_carried(const fs::path& source, const std::vector<CarriedFile>& files,
                   const std::string& below, StagedFolder& folder, Progress& progress) {
  for (const CarriedFile& carried : files) {
    const std::string path = carried_path(source, carried);
    const std::string name = below + carried.name;
    check_carried_file(path, copy_carried_file(path, folder.path_of(name), progress), carried);
    folder.add(name, carried.size_bytes);
  }
}

void write_part(const PackedWhole::Part& part, unsigned threads, StagedFolder& folder,
                Progress& progress) {
  const PackedCheckpoint& packed = part.checkpoint;
  for (const PackedShard& shard : packed.shards) {
    write_shard(shard, folder.path_of(part.below + shard.name), threads, progress);
    folder.add(part.below + shard.name, original_bytes_of(shard));
  }
  if (!packed.index) return;
  if (const auto& index = packed.index->original) {
    const std::string name = part.below + index->name;
    const OutputFile out = OutputFile::create(folder.path_of(name));
    out.write_at(0, std::as_bytes(std::span(index->text)));
    out.sync();
    folder.add(name, index->text.size());
  }
  write_carried(packed.folder, packed.index->carried, part.below, folder, progress);
}

void verify_carried(const fs::path& folder, const std::vector<CarriedFile>& files,
                    Progress& progress) {
  for (const CarriedFile& carried : files) {
    const std::string file = carried_path(folder, carried);
    check_carried_file(file, examine_carried_file(file, progress), carried);
  }
}

void verify_part(const PackedCheckpoint& packed, unsigned threads, Progress& progress) {
  for (const PackedShard& shard : packed.shards) {
    scan_packed_file(shard.file, shard.header, threads, {}, progress);
  }
  if (packed.index) verify_carried(packed.folder, packed.index->carried, progress);
}

/// Of files that are not packed: what their headers say.
CheckpointSummary examine_plain(const std::string& path) {
  const Checkpoint checkpoint = Checkpoint::open(path);
  CheckpointSummary summary;
  summary.files = checkpoint.files().size();
  summary.tensors = checkpoint.tensors().size();
  for (const std::string& file : checkpoint.files()) {
    summary.original_bytes += File::open_for_reading(file).size_bytes();
  }
  summary.stored_bytes = summary.original_bytes;
  return summary;
}

}  // namespace

CheckpointSummary unpack_checkpoint(const std::string& source, const std::string& target,
                                    unsigned threads, const ProgressSink& sink) {
  const std::optional<PackedWhole> packed = open_packed(source);
  if (!packed) {
    throw ConfigError("'" + source + "' is not packed: there is nothing to unpack");
  }
  const std::uint64_t needed_bytes = unpacked_bytes(*packed);
  StagedFolder folder(target, needed_bytes);
  Progress progress(sink, needed_bytes);
  for (const PackedWhole::Part& part : packed->parts) write_part(part, threads, folder, progress);
  write_carried(packed->folder, packed->rest, "", folder, progress);
  progress.finish();
  folder.publish();
  return summary_of(*packed);
}

CheckpointSummary verify_checkpoint(const std::string& path, unsigned threads,
                                    const ProgressSink& sink) {
  const std::optional<PackedWhole> packed = open_packed(path);
  if (!packed) {
    const auto models = models_of_pipeline(path);
    if (!models || models->empty()) return examine_plain(path);
    CheckpointSummary summary;
    for (const std::string& model : *models)
      summary += examine_plain((fs::path(path) / model).string());
    return summary;
  }
  Progress progress(sink, unpacked_bytes(*packed));
  for (const PackedWhole::Part& part : packed->parts) {
    verify_part(part.checkpoint, threads, progress);
  }
  verify_carried(packed->folder, packed->rest, progress);
  progress.finish();
  return summary_of(*packed);
}

}  // namespace tensorstream
