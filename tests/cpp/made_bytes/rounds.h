// How often a test does what it does with other numbers each time.
#pragma once

namespace tensorstream {

#ifdef TS_SANITIZED
inline constexpr bool kSanitized = true;
#else
inline constexpr bool kSanitized = false;
#endif

/// `all` of them, or a tenth under a sanitizer, which looks at each by itself and takes ten times
/// as long.
constexpr int rounds(int all) { return kSanitized ? (all + 9) / 10 : all; }

}  // namespace tensorstream
