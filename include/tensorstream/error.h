// The errors that TensorStream raises. Layer: base.
#pragma once

#include <cstdint>
#include <source_location>
#include <stdexcept>
#include <string>

namespace tensorstream {

/// Base of every error of the library; what() says what failed, on which object, with the numbers,
/// and what to do.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message,
                 std::source_location where = std::source_location::current())
      : std::runtime_error(message), where_(where) {}

  /// The place in the library's source that raised the error.
  const std::source_location& where() const noexcept { return where_; }

 private:
  std::source_location where_;
};

/// A read, a mapping or a file operation failed. Python: also an OSError.
class IoError : public Error {
 public:
  IoError(const std::string& message, std::string path, std::uint64_t offset_bytes,
          int error_number, std::source_location where = std::source_location::current())
      : Error(message, where),
        path_(std::move(path)),
        offset_bytes_(offset_bytes),
        error_number_(error_number) {}

  const std::string& path() const noexcept { return path_; }
  std::uint64_t offset_bytes() const noexcept { return offset_bytes_; }
  /// The errno of the failed call; 0 where the system reported success but the data is not there.
  int error_number() const noexcept { return error_number_; }

 private:
  std::string path_;
  std::uint64_t offset_bytes_;
  int error_number_;
};

/// A file breaks its format. Python: also a ValueError.
class FormatError : public Error {
 public:
  /// `tensor` is empty where the fault is in the file as a whole; `rule` is the rule that was
  /// broken.
  FormatError(const std::string& path, const std::string& tensor, const std::string& rule,
              std::source_location where = std::source_location::current())
      : Error(tensor.empty() ? path + ": " + rule : path + ": tensor '" + tensor + "': " + rule,
              where),
        path_(path),
        tensor_(tensor),
        rule_(rule) {}

  const std::string& path() const noexcept { return path_; }
  const std::string& tensor() const noexcept { return tensor_; }
  const std::string& rule() const noexcept { return rule_; }

 private:
  std::string path_;
  std::string tensor_;
  std::string rule_;
};

/// A call of the CUDA driver failed.
class CudaError : public Error {
 public:
  CudaError(const std::string& message, std::string call, int result,
            std::source_location where = std::source_location::current())
      : Error(message, where), call_(std::move(call)), result_(result) {}

  /// The driver's function, as it is exported.
  const std::string& call() const noexcept { return call_; }
  /// The CUresult that it returned.
  int result() const noexcept { return result_; }

 private:
  std::string call_;
  int result_;
};

/// The read that cuFile did not make.
struct CufileRead {
  std::string path;
  std::uint64_t offset_bytes = 0;
  std::uint64_t size_bytes = 0;
  /// A CUfileOpError.
  int result = 0;
};

/// A read into device memory by cuFile failed, in a way that the system has no errno for.
class CufileError : public Error {
 public:
  CufileError(const std::string& message, CufileRead read,
              std::source_location where = std::source_location::current())
      : Error(message, where), read_(std::move(read)) {}

  const CufileRead& read() const noexcept { return read_; }

 private:
  CufileRead read_;
};

/// A budget cannot hold what has to be held. Python: also a MemoryError.
class BudgetError : public Error {
 public:
  BudgetError(const std::string& message, std::uint64_t needed_bytes, std::uint64_t budget_bytes,
              std::source_location where = std::source_location::current())
      : Error(message, where), needed_bytes_(needed_bytes), budget_bytes_(budget_bytes) {}

  /// The smallest budget that would have done.
  std::uint64_t needed_bytes() const noexcept { return needed_bytes_; }
  std::uint64_t budget_bytes() const noexcept { return budget_bytes_; }

 private:
  std::uint64_t needed_bytes_;
  std::uint64_t budget_bytes_;
};

/// An option or argument cannot be used as given. Python: also a ValueError.
class ConfigError : public Error {
 public:
  using Error::Error;
};

/// What was asked for exists but cannot be had here or with this input.
class UnsupportedError : public Error {
 public:
  using Error::Error;
};

/// The caller broke the engine's contract: a lease released twice, an access without a lease.
class LeaseError : public Error {
 public:
  using Error::Error;
};

}  // namespace tensorstream
