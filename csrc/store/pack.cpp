#include "store/pack.h"

#include <filesystem>
#include <optional>
#include <set>
#include <utility>
#include <vector>

#include "store/carried_files.h"
#include "store/pack_job.h"
#include "store/packed_index.h"
#include "store/pipeline.h"
#include "store/staged_folder.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

namespace fs = std::filesystem;

/// A pipeline's folder: its models, which are checkpoints of their own, and what lies beside them.
struct Pipeline {
  fs::path folder;
  std::vector<std::string> models;
  std::vector<CarriedFile> rest;
};

/// Nothing where `source` is no pipeline's folder.
std::optional<Pipeline> find_pipeline(const std::string& source) {
  std::optional<std::vector<std::string>> models = models_of_pipeline(source);
  if (!models) return std::nullopt;
  if (models->empty()) {
    throw ConfigError("'" + source + "' is a pipeline, and no folder of a model in it holds " +
                      "safetensors: there is nothing to pack");
  }
  Pipeline pipeline{source, *std::move(models), {}};
  pipeline.rest = list_carried_files(source, {pipeline.models.begin(), pipeline.models.end()});
  return pipeline;
}

/// Refuses names of what lies beside the models that the packed format cannot hold.
void check_rest(const Pipeline& pipeline) {
  for (const CarriedFile& file : pipeline.rest) {
    check_name(pipeline.folder, file.name);
    if (file.name == kPackedPipelineName) {  // guard: name-of-packed-pipeline
      refuse_name(pipeline.folder, file.name, "the name is one of the packed format's own");
    }
  }
}

std::vector<PackJob> open_jobs(const std::string& source, const std::optional<Pipeline>& pipeline) {
  std::vector<PackJob> jobs;
  if (!pipeline) {
    jobs.emplace_back(source, "");
    return jobs;
  }
  for (const std::string& model : pipeline->models) {
    jobs.emplace_back((pipeline->folder / model).string(), model + "/");
  }
  return jobs;
}

/// Writes which models there are, and what was carried along beside them.
void write_pipeline_index(const Pipeline& pipeline, const std::vector<PackJob>& jobs,
                          PackedPipelineIndex& index, StagedFolder& folder) {
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    index.models.emplace(pipeline.models[i], jobs[i].seal());
  }
  write_index_text(folder, kPackedPipelineName, packed_pipeline_text(index),
                   pipeline.folder.string());
}

}  // namespace

CheckpointSummary& CheckpointSummary::operator+=(const CheckpointSummary& other) noexcept {
  files += other.files;
  tensors += other.tensors;
  encoded_tensors += other.encoded_tensors;
  original_bytes += other.original_bytes;
  stored_bytes += other.stored_bytes;
  return *this;
}

CheckpointSummary pack_checkpoint(const std::string& source, const std::string& target,
                                  const PackOptions& options, const ProgressSink& sink) {
  const std::optional<Pipeline> pipeline = find_pipeline(source);
  std::vector<PackJob> jobs = open_jobs(source, pipeline);
  if (pipeline) check_rest(*pipeline);
  StagedWork work;
  work.description = "tensorstream pack 1, level " + std::to_string(options.level.number()) + "\n";
  std::uint64_t read_bytes = pipeline ? carried_bytes(pipeline->rest) : 0;
  std::uint64_t bound_bytes =
      pipeline ? read_bytes + (pipeline->rest.size() + jobs.size()) * kIndexRowBytes : 0;
  for (const PackJob& job : jobs) {
    job.describe(work);
    read_bytes += job.read_bytes();
    bound_bytes += job.bound_bytes();
  }
  StagedFolder folder(target, bound_bytes, work);
  Progress progress(sink, read_bytes);
  PackedPipelineIndex index;
  if (pipeline) index.carried = carry(pipeline->folder, pipeline->rest, "", folder, progress);
  for (PackJob& job : jobs) job.carry_files(folder, progress);
  CheckpointSummary summary;
  for (PackJob& job : jobs) summary += job.pack(folder, options, progress);
  if (pipeline) write_pipeline_index(*pipeline, jobs, index, folder);
  for (const PackJob& job : jobs) job.check_source();
  if (pipeline) {
    check_still_there(pipeline->folder.string(), index.carried);  // guard: packed-pipeline-folder
  }
  progress.finish();
  folder.publish();
  return summary;
}

}  // namespace tensorstream
