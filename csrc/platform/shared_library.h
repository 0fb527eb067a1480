// Libraries that are opened at run time: where they are looked for.
#pragma once

#include <span>
#include <string>
#include <vector>

namespace tensorstream {

/// Where to look for a library.
struct LibraryPlaces {
  /// The library itself; empty to look for it.
  std::string library;
  /// Folders to look in, as those of Python's packages, which no loader knows.
  std::vector<std::string> folders;
};

/// A library that was opened, or not; never closed, since who else uses it is not known.
struct OpenedLibrary {
  void* handle = nullptr;
  /// As the loader was asked for it.
  std::string path;
};

/// Opens `path`; the handle is null where that cannot be.
OpenedLibrary open_library(const std::string& path);
/// Opens the one that is given, else one of `names` (the newest first): what the process has loaded
/// already, if any; else the first that is found in the folders, where the system's loader looks,
/// and where NVIDIA's toolkit is usually installed.
OpenedLibrary find_library(const LibraryPlaces& places, std::span<const char* const> names);
/// What the loader said last of a library that it could not open.
std::string last_loader_error();

/// The function that `library` exports as `name`; null where it does not.
void* find_symbol(void* library, const char* name);

/// Points `function` at the library's `name`; false where it has none.
template <typename Function>
bool find_function(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(find_symbol(library, name));
  return function != nullptr;
}

}  // namespace tensorstream
