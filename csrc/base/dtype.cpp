#include "tensorstream/dtype.h"

#include <array>
#include <cstddef>

namespace tensorstream {
namespace {

struct DtypeRow {
  Dtype dtype;
  std::string_view file_name;
  std::string_view torch_name;
  std::uint32_t bits;
};

constexpr std::array kDtypes = {
#define TS_DTYPE_ROW(id, file_name, torch_name, bits) \
  DtypeRow{Dtype::id, file_name, torch_name, bits},
    TS_DTYPES(TS_DTYPE_ROW)
#undef TS_DTYPE_ROW
};

const DtypeRow& row(Dtype dtype) noexcept { return kDtypes[static_cast<std::size_t>(dtype)]; }

}  // namespace

std::string_view dtype_file_name(Dtype dtype) noexcept { return row(dtype).file_name; }
std::string_view dtype_torch_name(Dtype dtype) noexcept { return row(dtype).torch_name; }
std::uint32_t dtype_bits(Dtype dtype) noexcept { return row(dtype).bits; }

std::optional<Dtype> dtype_from_file_name(std::string_view name) noexcept {
  for (const DtypeRow& candidate : kDtypes) {
    if (candidate.file_name == name) return candidate.dtype;
  }
  return std::nullopt;
}

std::optional<Dtype> dtype_from_torch_name(std::string_view name) noexcept {
  for (const DtypeRow& candidate : kDtypes) {
    if (candidate.torch_name == name) return candidate.dtype;
  }
  return std::nullopt;
}

}  // namespace tensorstream
