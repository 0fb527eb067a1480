// Pipelines of diffusers: folders of models, with an index that names these.
#pragma once

#include <optional>
#include <string>
#include <vector>

namespace tensorstream {

/// The folders of the models that the pipeline in `folder` names and has safetensors of, by name;
/// nothing where it is no pipeline's. Raises FormatError for an index that is no object, or names a
/// model elsewhere, and IoError.
std::optional<std::vector<std::string>> models_of_pipeline(const std::string& folder);

}  // namespace tensorstream
