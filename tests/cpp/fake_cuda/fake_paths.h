// Where the fakes are, for tests. A source that the build writes says it: what a test is compiled
// to does not depend on the folder of the build.
#pragma once

namespace tensorstream {

extern const char* const kFakeCuda;
extern const char* const kIncompleteCuda;
extern const char* const kFakeNvrtc;

}  // namespace tensorstream
