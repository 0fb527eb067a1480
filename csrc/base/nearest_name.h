// The nearest of some names to a misspelt one.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace tensorstream {

/// The name of `known` with the fewest edits (insert, delete, replace, swap of neighbours) from
/// `name`; empty where all are further than a third of its length.
std::string nearest_name(std::string_view name, std::span<const std::string> known);

/// " (did you mean 'x'?)" with the nearest name, or an empty text.
std::string did_you_mean(std::string_view name, std::span<const std::string> known);

}  // namespace tensorstream
