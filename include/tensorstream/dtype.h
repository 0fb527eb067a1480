// Element types that safetensors files and PyTorch share. Layer: base.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace tensorstream {

// enumerator, name in safetensors files, name in torch, bits an element. The one table of types:
// C++, Python and tests read it.
#define TS_DTYPES(X)                                  \
  X(kBool, "BOOL", "bool", 8)                         \
  X(kU8, "U8", "uint8", 8)                            \
  X(kI8, "I8", "int8", 8)                             \
  X(kU16, "U16", "uint16", 16)                        \
  X(kI16, "I16", "int16", 16)                         \
  X(kU32, "U32", "uint32", 32)                        \
  X(kI32, "I32", "int32", 32)                         \
  X(kU64, "U64", "uint64", 64)                        \
  X(kI64, "I64", "int64", 64)                         \
  X(kF8E4M3, "F8_E4M3", "float8_e4m3fn", 8)           \
  X(kF8E5M2, "F8_E5M2", "float8_e5m2", 8)             \
  X(kF8E4M3Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", 8) \
  X(kF8E5M2Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", 8) \
  X(kF8E8M0, "F8_E8M0", "float8_e8m0fnu", 8)          \
  X(kF4, "F4", "float4_e2m1fn_x2", 4)                 \
  X(kF16, "F16", "float16", 16)                       \
  X(kBf16, "BF16", "bfloat16", 16)                    \
  X(kF32, "F32", "float32", 32)                       \
  X(kF64, "F64", "float64", 64)                       \
  X(kC64, "C64", "complex64", 64)

enum class Dtype : std::uint8_t {
#define TS_DTYPE_ENUMERATOR(id, file_name, torch_name, bits) id,
  TS_DTYPES(TS_DTYPE_ENUMERATOR)
#undef TS_DTYPE_ENUMERATOR
};

/// The type's name in safetensors files, "BF16".
std::string_view dtype_file_name(Dtype dtype) noexcept;
/// The type's name as an attribute of torch, "bfloat16".
std::string_view dtype_torch_name(Dtype dtype) noexcept;
/// Bits of one element of a safetensors shape.
std::uint32_t dtype_bits(Dtype dtype) noexcept;
/// The type that safetensors files call `name`; nothing where there is none.
std::optional<Dtype> dtype_from_file_name(std::string_view name) noexcept;
/// The type that torch calls `name` ("bfloat16"); nothing where there is none.
std::optional<Dtype> dtype_from_torch_name(std::string_view name) noexcept;

}  // namespace tensorstream
