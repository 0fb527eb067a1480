#include "made_bytes/text_of_bytes.h"

#include "made_bytes/weights.h"

namespace tensorstream::testing {

std::string weights(std::size_t count, unsigned seed) {
  const Bytes bytes = gaussian_weights(Dtype::kBf16, count, 0.02, seed);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string noise(std::size_t count, unsigned seed) {
  const Bytes bytes = random_bytes(count, seed);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

}  // namespace tensorstream::testing
