// Emulation of csrc/cuda/device/mma.h: lanes deposit their fragments, the last to come multiplies, by the layouts that
// the PTX ISA documents.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/half.h"
#include "cuda/device/memory.h"
#include "cuda/device/warp.h"

namespace gristmill::cuda {
namespace emulation {

template <class Sum>
struct MmaLane {
  Sum d[4];
  uint32_t a[4], b[2];
};

// d = a b + d over k elements of a register's kPerRegister; get_a(register, i), get_b(register, i) are element values.
template <class Sum, int kPerRegister, class GetA, class GetB>
void multiply(void* const* lanes, int n_a, int n_b, GetA get_a, GetB get_b) {
  const int k = 4 * kPerRegister * n_b;
  Sum a[16][32], b[32][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const auto& from = *static_cast<const MmaLane<Sum>*>(lanes[lane]);
    const int g = lane / 4, t = lane % 4;
    for (int i = 0; i < kPerRegister; ++i) {
      for (int r = 0; r < n_a; ++r)
        a[g + 8 * (r % 2)][4 * kPerRegister * (r / 2) + kPerRegister * t + i] = get_a(from.a[r], i);
      for (int r = 0; r < n_b; ++r) b[4 * kPerRegister * r + kPerRegister * t + i][g] = get_b(from.b[r], i);
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    auto& to = *static_cast<MmaLane<Sum>*>(lanes[lane]);
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = lane % 4 * 2 + r % 2;
      Sum sum = 0;
      for (int i = 0; i < k; ++i) sum += a[row][i] * b[i][column];
      to.d[r] += sum;
    }
  }
}

constexpr auto kUnsignedByte = [](uint32_t v, int i) { return int(uint8_t(v >> 8 * i)); };
constexpr auto kSignedByte = [](uint32_t v, int i) { return int(int8_t(v >> 8 * i)); };
constexpr auto kHalf = [](uint32_t v, int i) { return half_to_float(uint16_t(v >> 16 * i)); };
constexpr auto kBfloat = [](uint32_t v, int i) { return bf16_to_float(uint16_t(v >> 16 * i)); };

}  // namespace emulation

inline void mma_u8_k32(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4],
                       const Site& site = Site::current()) {
  emulation::MmaLane<int> lane{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto act = [](void* const* lanes, uint32_t) {
    emulation::multiply<int, 4>(lanes, 4, 2, emulation::kUnsignedByte, emulation::kSignedByte);
  };
  emulation::meet_warp(kFullWarp, act, &lane, site);
  std::memcpy(d, lane.d, sizeof(lane.d));
}
inline void mma_s8_k32(int (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, const int (&c)[4],
                       const Site& site = Site::current()) {
  emulation::MmaLane<int> lane{{c[0], c[1], c[2], c[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto act = [](void* const* lanes, uint32_t) {
    emulation::multiply<int, 4>(lanes, 4, 2, emulation::kSignedByte, emulation::kSignedByte);
  };
  emulation::meet_warp(kFullWarp, act, &lane, site);
  std::memcpy(d, lane.d, sizeof(lane.d));
}
inline void mma_u8_k16(int (&d)[4], uint32_t a0, uint32_t a1, uint32_t b, const int (&c)[4],
                       const Site& site = Site::current()) {
  emulation::MmaLane<int> lane{{c[0], c[1], c[2], c[3]}, {a0, a1, 0, 0}, {b, 0}};
  const auto act = [](void* const* lanes, uint32_t) {
    emulation::multiply<int, 4>(lanes, 2, 1, emulation::kUnsignedByte, emulation::kSignedByte);
  };
  emulation::meet_warp(kFullWarp, act, &lane, site);
  std::memcpy(d, lane.d, sizeof(lane.d));
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                    const Site& site = Site::current()) {
  emulation::MmaLane<float> lane{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto act = [](void* const* lanes, uint32_t) {
    emulation::multiply<float, 2>(lanes, 4, 2, emulation::kHalf, emulation::kHalf);
  };
  emulation::meet_warp(kFullWarp, act, &lane, site);
  std::memcpy(d, lane.d, sizeof(lane.d));
}
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                     const Site& site = Site::current()) {
  emulation::MmaLane<float> lane{{d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  const auto act = [](void* const* lanes, uint32_t) {
    emulation::multiply<float, 2>(lanes, 4, 2, emulation::kBfloat, emulation::kBfloat);
  };
  emulation::meet_warp(kFullWarp, act, &lane, site);
  std::memcpy(d, lane.d, sizeof(lane.d));
}

namespace emulation {

struct MatrixLane {
  const void* row;
  uint32_t r[4];
};

template <bool kTransposed>
void load_matrices(void* const* lanes, uint32_t) {
  for (int i = 0; i < 4; ++i)
    for (int lane = 0; lane < kWarp; ++lane) {
      uint32_t v = 0;
      for (int j = 0; j < 2; ++j) {
        const int row = kTransposed ? lane % 4 * 2 + j : lane / 4;
        const int column = kTransposed ? lane / 4 : lane % 4 * 2 + j;
        uint16_t half;
        std::memcpy(&half,
                    static_cast<const char*>(static_cast<const MatrixLane*>(lanes[8 * i + row])->row) + 2 * column,
                    sizeof(half));
        v |= uint32_t(half) << 16 * j;
      }
      static_cast<MatrixLane*>(lanes[lane])->r[i] = v;
    }
}

inline void check_matrix_row(const void* row, const Site& site) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0 || !is_shared(row, 16))
    fail(site, "a matrix row that is not 16 aligned bytes of shared memory");
}

}  // namespace emulation

inline void load_matrices(uint32_t (&r)[4], const void* row, const Site& site = Site::current()) {
  emulation::check_matrix_row(row, site);
  emulation::MatrixLane lane{row, {}};
  emulation::meet_warp(kFullWarp, emulation::load_matrices<false>, &lane, site);
  std::memcpy(r, lane.r, sizeof(lane.r));
}
inline void load_matrices_transposed(uint32_t (&r)[4], const void* row, const Site& site = Site::current()) {
  emulation::check_matrix_row(row, site);
  emulation::MatrixLane lane{row, {}};
  emulation::meet_warp(kFullWarp, emulation::load_matrices<true>, &lane, site);
  std::memcpy(r, lane.r, sizeof(lane.r));
}

}  // namespace gristmill::cuda
