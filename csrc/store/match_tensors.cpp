#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <set>
#include <string_view>
#include <tuple>
#include <utility>

#include "base/units.h"
#include "store/checkpoint.h"
#include "store/same_value.h"
#include "store/shown_text.h"
#include "tensorstream/error.h"

namespace tensorstream {
namespace {

// Prefixes end at one of a name's first dots: "base_model.model." has two.
constexpr std::size_t kLongestPrefixParts = 4;
constexpr std::size_t kListed = 5;

using Tensors = std::map<std::string, CheckpointTensor, std::less<>>;
/// For each wanted tensor all that the checkpoint has for it: several where it is tied.
using Matches = std::vector<std::vector<const CheckpointTensor*>>;
using Indices = std::vector<std::size_t>;

enum class Change { kAdded, kRemoved };

/// A prefix that the model's names get (kAdded) or lose (kRemoved) to be the checkpoint's.
struct Prefix {
  Change change = Change::kAdded;
  std::string_view text;

  auto operator<=>(const Prefix&) const = default;
};

std::string text_of(const Prefix& prefix) {
  return std::string(prefix.change == Change::kAdded ? "adding" : "removing") + " '" +
         shown(prefix.text) + "'";
}

/// Calls `visit(prefix, rest)` for each way to cut `name` after one of its first dots.
template <typename Visit>
void for_each_cut(std::string_view name, const Visit& visit) {
  std::size_t end = 0;
  for (std::size_t part = 0; part < kLongestPrefixParts; ++part) {
    const std::size_t dot = name.find('.', end);
    if (dot == std::string_view::npos) return;
    end = dot + 1;
    visit(name.substr(0, end), name.substr(end));
  }
}

const CheckpointTensor* find_tensor(const Tensors& tensors, std::string_view name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : &found->second;
}

const CheckpointTensor* find_by_prefix(const Tensors& tensors, const std::string& name,
                                       const Prefix& prefix) {
  if (prefix.change == Change::kAdded) return find_tensor(tensors, std::string(prefix.text) + name);
  if (!name.starts_with(prefix.text)) return nullptr;
  return find_tensor(tensors, std::string_view(name).substr(prefix.text.size()));
}

Matches find_by_names(const Tensors& tensors, std::span<const WantedTensor> wanted) {
  Matches matches(wanted.size());
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    for (const std::string& name : wanted[i].names) {
      if (const auto* tensor = find_tensor(tensors, name)) matches[i].push_back(tensor);
    }
  }
  return matches;
}

std::size_t count_found(const Matches& matches) {
  return static_cast<std::size_t>(
      std::ranges::count_if(matches, [](const auto& found) { return !found.empty(); }));
}

/// Finds the one prefix that makes all names the checkpoint's. One that is right for some of them
/// only would give a weight that is not there another's values.
class PrefixSearch {
 public:
  PrefixSearch(const Tensors& tensors, std::span<const WantedTensor> wanted)
      : tensors_(tensors), wanted_(wanted) {}

  /// What the prefix finds, with what the names `as_they_are` do beside it. Where none finds all,
  /// what the fullest way finds: its gaps are what the checkpoint lacks.
  Matches run(Matches as_they_are) {
    count_removed();
    count_added();
    const std::pair<const Prefix, Indices>* best = nullptr;
    std::size_t most = count_found(as_they_are);
    for (auto& candidate : found_by_) {
      Indices& found = candidate.second;
      std::sort(found.begin(), found.end());
      found.erase(std::unique(found.begin(), found.end()), found.end());
      if (best != nullptr && most == wanted_.size() && found.size() == most) {
        refuse_a_guess(best->first, candidate.first);
      }
      if (found.size() <= most) continue;
      most = found.size();
      best = &candidate;
    }
    if (best == nullptr) return as_they_are;
    Matches matches(wanted_.size());
    for (const std::size_t i : best->second) {
      matches[i] = find(i, best->first);
      std::ranges::copy(as_they_are[i], std::back_inserter(matches[i]));
    }
    return matches;
  }

 private:
  void count_removed() {
    for (std::size_t i = 0; i < wanted_.size(); ++i) {
      for (const std::string& name : wanted_[i].names) {
        for_each_cut(name, [&](std::string_view prefix, std::string_view rest) {
          if (find_tensor(tensors_, rest) == nullptr) return;
          found_by_[{Change::kRemoved, prefix}].push_back(i);
        });
      }
    }
  }

  void count_added() {
    std::map<std::string_view, std::size_t> by_name;
    for (std::size_t i = 0; i < wanted_.size(); ++i) {
      for (const std::string& name : wanted_[i].names) by_name.emplace(name, i);
    }
    for (const auto& [name, tensor] : tensors_) {
      for_each_cut(name, [&](std::string_view prefix, std::string_view rest) {
        const auto found = by_name.find(rest);
        if (found != by_name.end()) found_by_[{Change::kAdded, prefix}].push_back(found->second);
      });
    }
  }

  std::vector<const CheckpointTensor*> find(std::size_t i, const Prefix& prefix) const {
    std::vector<const CheckpointTensor*> found;
    for (const std::string& name : wanted_[i].names) {
      if (const auto* tensor = find_by_prefix(tensors_, name, prefix)) found.push_back(tensor);
    }
    return found;
  }

  /// Raises where two prefixes that find all find different weights.
  void refuse_a_guess(const Prefix& one, const Prefix& other) const {
    bool same = true;
    for (std::size_t i = 0; same && i < wanted_.size(); ++i) same = find(i, one) == find(i, other);
    if (same) return;
    throw ConfigError("the checkpoint's names fit the model's both by " + text_of(one) +
                      " and by " + text_of(other) +
                      ", which are different weights; give a checkpoint that holds only one");
  }

  const Tensors& tensors_;
  std::span<const WantedTensor> wanted_;
  /// By prefix, the indices of the wanted tensors that it finds.
  std::map<Prefix, Indices> found_by_;
};

/// The shape that a file has for the wanted one: an element of torch's float4_e2m1fn_x2 is two of
/// F4, side by side in the last dimension.
std::optional<std::vector<std::uint64_t>> stored_shape(const WantedTensor& wanted) {
  if (wanted.dtype != Dtype::kF4) return wanted.shape;
  if (wanted.shape.empty()) return std::nullopt;
  std::vector<std::uint64_t> shape = wanted.shape;
  const auto doubled = checked_mul(shape.back(), 2);
  if (!doubled) return std::nullopt;
  shape.back() = *doubled;
  return shape;
}

std::string type_text(Dtype dtype, const std::vector<std::uint64_t>& shape) {
  std::string text = std::string(dtype_file_name(dtype)) + " [";
  for (std::size_t i = 0; i < shape.size(); ++i) {
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  }
  return text + "]";
}

/// Keeps the first few of some findings, and how many there were.
class Findings {
 public:
  template <typename MakeText>
  void add(const MakeText& make_text) {
    if (++count_ > kListed) return;
    if (count_ > 1) text_ += ", ";
    text_ += make_text();
  }
  std::size_t count() const noexcept { return count_; }
  std::string text() const {
    if (count_ <= kListed) return text_;
    return text_ + " and " + std::to_string(count_ - kListed) + " more";
  }

 private:
  std::size_t count_ = 0;
  std::string text_;
};

std::string name_text(const WantedTensor& wanted) {
  return wanted.names.empty() ? "a tensor without a name" : "'" + shown(wanted.names.front()) + "'";
}

void check_all_fit(const Checkpoint& checkpoint, std::span<const WantedTensor> wanted,
                   const Matches& matches) {
  Findings missing;
  Findings unlike;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const WantedTensor& model = wanted[i];
    if (matches[i].empty()) {
      missing.add(
          [&] { return name_text(model) + " (" + type_text(model.dtype, model.shape) + ")"; });
      continue;
    }
    const StoredTensor& stored = matches[i].front()->stored;
    const auto shape = stored_shape(model);
    if (stored.dtype == model.dtype && shape && stored.shape == *shape) continue;
    unlike.add([&] {
      return name_text(model) + " (" + type_text(model.dtype, shape.value_or(model.shape)) +
             " in the model, " + type_text(stored.dtype, stored.shape) + " in the checkpoint)";
    });
  }
  if (missing.count() + unlike.count() == 0) return;

  const std::string where =
      checkpoint.files().empty() ? "" : " '" + checkpoint.files().front() + "'";
  std::string message = "the checkpoint" + where + " does not fit the model of " +
                        std::to_string(wanted.size()) + " tensors";
  if (missing.count() != 0) {
    message += "; " + std::to_string(missing.count()) + " missing: " + missing.text();
  }
  if (unlike.count() != 0) {
    message +=
        "; " + std::to_string(unlike.count()) + " of another shape or type: " + unlike.text();
  }
  message += "; the checkpoint has " + std::to_string(checkpoint.tensors().size()) + " tensors";
  if (!checkpoint.tensors().empty()) {
    message += ", the first '" + shown(checkpoint.tensors().begin()->first) + "'";
  }
  throw ConfigError(message + "; give the checkpoint that the model was made from");
}

}  // namespace

std::vector<std::uint64_t> torch_shape(const StoredTensor& stored) {
  std::vector<std::uint64_t> shape = stored.shape;
  if (stored.dtype == Dtype::kF4 && !shape.empty()) shape.back() /= 2;
  return shape;
}

std::vector<const CheckpointTensor*> match_tensors(const Checkpoint& checkpoint,
                                                   std::span<const WantedTensor> wanted) {
  Matches matches = find_by_names(checkpoint.tensors(), wanted);
  if (count_found(matches) != wanted.size()) {
    matches = PrefixSearch(checkpoint.tensors(), wanted).run(std::move(matches));
  }
  check_all_fit(checkpoint, wanted, matches);
  std::vector<const CheckpointTensor*> found;
  for (const auto& places : matches) {
    check_same_value(checkpoint, places);  // guard: tied-value
    found.push_back(places.front());
  }
  return found;
}

}  // namespace tensorstream
