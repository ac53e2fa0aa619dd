// The 12 bytes of Q4_K and Q5_K that hold eight 6-bit scales and eight 6-bit minima.
//   byte j      (j < 4)   sc[j]     | (sc[j + 4] >> 4) << 6
//   byte j + 4            m[j]      | (m[j + 4] >> 4) << 6
//   byte j + 8            sc[j + 4] & 15 | (m[j + 4] & 15) << 4
#pragma once

#include "formats/format.h"

namespace gristmill::formats {

static GRISTMILL_FORMAT_FN void unpack_k_scales(const uint8_t* bytes, uint8_t* scale, uint8_t* min) {
  for (int j = 0; j < 4; ++j) {
    scale[j] = bytes[j] & 63;
    min[j] = bytes[j + 4] & 63;
    scale[j + 4] = uint8_t((bytes[j + 8] & 15) | (bytes[j] >> 6) << 4);
    min[j + 4] = uint8_t((bytes[j + 8] >> 4) | (bytes[j + 4] >> 6) << 4);
  }
}

static inline void pack_k_scales(const uint8_t* scale, const uint8_t* min, uint8_t* bytes) {
  for (int j = 0; j < 4; ++j) {
    bytes[j] = uint8_t(scale[j] | (scale[j + 4] >> 4) << 6);
    bytes[j + 4] = uint8_t(min[j] | (min[j + 4] >> 4) << 6);
    bytes[j + 8] = uint8_t((scale[j + 4] & 15) | (min[j + 4] & 15) << 4);
  }
}

// scale[g] = d * sc[g], min[g] = -(dmin * m[g]) for the eight groups, d and dmin as the f16 bits of the block.
static GRISTMILL_FORMAT_FN void k_scales_to_float(uint16_t d_bits, uint16_t dmin_bits, const uint8_t* bytes,
                                                  float* scale, float* min) {
  const float d = half_to_float(d_bits), dmin = half_to_float(dmin_bits);
  uint8_t sc[8], m[8];
  unpack_k_scales(bytes, sc, m);
  for (int g = 0; g < 8; ++g) {
    scale[g] = d * float(sc[g]);
    min[g] = -(dmin * float(m[g]));
  }
}

}  // namespace gristmill::formats
