#include "platform/shared_library.h"

#include <dlfcn.h>

namespace tensorstream {
namespace {

constexpr const char* kToolkitFolder = "/usr/local/cuda/lib64";

OpenedLibrary open_with(const std::string& path, int flags) {
  return {dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL | flags), path};
}

}  // namespace

OpenedLibrary open_library(const std::string& path) { return open_with(path, 0); }

OpenedLibrary find_library(const LibraryPlaces& places, std::span<const char* const> names) {
  if (!places.library.empty()) return open_library(places.library);
  // What torch has loaded is of its version, and is paid for.
  for (const char* const name : names) {
    if (auto opened = open_with(name, RTLD_NOLOAD); opened.handle != nullptr) return opened;
  }
  std::vector<std::string> prefixes;
  prefixes.reserve(places.folders.size() + 2);
  for (const std::string& folder : places.folders) prefixes.push_back(folder + "/");
  prefixes.emplace_back();  // the loader's own places
  prefixes.push_back(std::string(kToolkitFolder) + "/");
  for (const std::string& prefix : prefixes) {
    for (const char* const name : names) {
      if (auto opened = open_library(prefix + name); opened.handle != nullptr) return opened;
    }
  }
  return {};
}

std::string last_loader_error() {
  const char* const text = dlerror();
  return text == nullptr ? "no reason given" : text;
}

void* find_symbol(void* library, const char* name) { return dlsym(library, name); }

}  // namespace tensorstream
