// The 16 levels of IQ4_NL and IQ4_XS, in 1/128ths of the largest weight a block can hold: dense around zero, where
// weights are. The format fixes the numbers.
#pragma once

#include "formats/format.h"

namespace gristmill::formats {

static GRISTMILL_FORMAT_FN constexpr int iq4_level(int index) {
  constexpr int8_t kLevels[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
  return kLevels[index];
}

}  // namespace gristmill::formats
