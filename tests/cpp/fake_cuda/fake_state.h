// What the fake driver holds, and how each of its entries begins.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "fake_cuda/fake_queue.h"
#include "platform/cuda_driver.h"
#include "platform/cufile.h"

#define TS_FAKE_EXPORT extern "C" __attribute__((visibility("default")))

namespace tensorstream {

// Every entry of the table: a definition with other parameters does not compile.
#define TS_FAKE_ENTRY(name, parameters) TS_FAKE_EXPORT CudaResult name parameters;
TS_CUDA_DRIVER_ENTRIES(TS_FAKE_ENTRY)
#undef TS_FAKE_ENTRY

#define TS_FAKE_ENTRY(result, name, parameters) TS_FAKE_EXPORT result name parameters;
TS_CUFILE_ENTRIES(TS_FAKE_ENTRY)
#undef TS_FAKE_ENTRY

struct CudaStreamState {
  explicit CudaStreamState(unsigned long long number) : id(number) {}
  const unsigned long long id;
  fake_cuda::Queue queue;
};

struct CudaEventState {
  std::shared_ptr<fake_cuda::Completion> last;  // null until recorded
};

struct CudaFunctionState {
  std::string name;
};

struct CudaModuleState {
  std::string source;
  CudaFunctionState function;  // the last that was asked for
};

struct CudaContextState {
  CudaOrdinal device = 0;
  int retained = 0;
  std::set<CudaStreamHandle> streams;  // not yet destroyed
  std::map<CudaEventHandle, std::unique_ptr<CudaEventState>> events;
  std::map<CudaModuleHandle, std::unique_ptr<CudaModuleState>> modules;
  struct Allocation {
    void* memory = nullptr;
    std::size_t size_bytes = 0;
  };
  std::map<CudaAddress, Allocation> allocations;
  CudaStreamHandle legacy = nullptr;
  std::map<unsigned long long, CudaStreamHandle> by_thread;
  /// Destroyed streams too: their work goes on without their handles.
  std::vector<std::unique_ptr<CudaStreamState>> all_streams;

  CudaContextState() = default;
  ~CudaContextState();
  CudaContextState(const CudaContextState&) = delete;
  CudaContextState& operator=(const CudaContextState&) = delete;
};

namespace fake_cuda {

struct State {
  std::mutex mutex;  // of everything below
  std::map<std::string, long long> settings;
  struct Failure {
    int calls_left = 0;
    int result = 0;
  };
  std::map<std::string, Failure> failures;
  std::map<std::string, long long> calls;
  std::map<CudaOrdinal, std::unique_ptr<CudaContextState>> contexts;
  std::map<std::uintptr_t, std::size_t> registrations;
  std::set<void*> files;  // registered with cuFile
  std::size_t used_bytes = 0;
  long long leaked = 0;
  unsigned long long ids_given = 0;
  bool initialised = false;
  long long held_calls = 0;  // that wait because of a setting

  long long setting(const std::string& name) const { return settings.at(name); }
};

/// The settings and their defaults. Of those that are not plain: "lost" is what every call returns
/// from now on; "pageable_copies_wait" has copies of memory that is not registered block until they
/// are done, and "serial_host_functions" has one host function run at a time, both of which the
/// real driver may do; "hold_calls" has every call wait while work goes on, as it does where
/// another thread's call waits for that work, and "hold_copies" and "hold_launches" those alone
/// that copy to the device, or launch a kernel; "late_host_functions" has calls that enqueue a host
/// function return late, as where their thread is not scheduled; "captured_globally" has calls fail
/// that another stream's capture forbids all threads. Of cuFile: "cufile_longest_read" is the most
/// bytes that a read gives at once.
std::map<std::string, long long> default_settings();

State& state();

/// What must be there for a call to be made.
enum class Needs { kNothing, kDriver, kContext };

/// Waits while the setting is not 0, in "held_calls". Without the mutex.
void wait_while_set(const char* setting);

/// Counts the call and gives the result that it is to return at once, if any but kSuccess.
CudaResult enter(const char* function, Needs needs);

/// The calling thread's contexts, the current one last.
std::vector<CudaContextHandle>& context_stack();
/// The calling thread's, of which the driver has one for each.
int& capture_mode();
/// True on a thread that runs a host function, which may not call the driver.
bool& in_host_function();

/// The stream that `handle` means to the calling thread; null where there is none. With the mutex
/// held and a context current.
CudaStreamState* find_stream(CudaStreamHandle handle);
CudaStreamHandle add_stream(CudaContextState& context);
CudaEventState* find_event(CudaEventHandle handle);
/// Whether a device may touch these bytes: its own memory, or registered memory of the host. With
/// the mutex held.
bool is_device_memory(CudaAddress address, std::size_t size_bytes);

}  // namespace fake_cuda
}  // namespace tensorstream
