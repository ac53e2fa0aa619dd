// How a matrix lies in device memory: tiles of 16 rows x 256 columns, row tile after row tile, each as many bytes as
// the same blocks have in the file, first the codes in planes of 8, 4, 2 or 1 bit, then what scales them, as the file
// has it.
//
// A plane is in the order of the A fragments of mma.m16n8k32: register i (0..3) of lane 4 g + t holds, of row g + 8 (i
// % 2), the columns 16 (i / 2) + 4 t + {0..3} of a group of 32, one a byte. 16 bytes a lane, 512 a warp:
//   8 bits  one group of 32                   8 x 512 bytes a tile
//   4 bits  two groups, low and high nibble   4 x 512
//   2 bits  four groups, from the low bits    2 x 512
//   1 bit   all eight groups                  512
// Codes of 5, 6 and 3 bits are a plane of their low 4, 4 and 2 bits and one of the rest. Halves are in the order of
// mma.m16n8k16; F32 is row-major. Beyond the matrix' edges blocks are zeros, which every format reads as zeros.
#pragma once

#include <cstdint>

#include "cuda/activations.h"
#include "cuda/device/launch.h"
#include "formats/format.h"

namespace gristmill::cuda {

using formats::TypeId;

// Where a code's bits lie in a block of the file.
struct Place8 {
  int byte, shift;
};

// Bytes of a block that go to the tile unchanged, [16 rows][blocks of the row in order][bytes].
struct Side {
  int offset, bytes;
};

// What a format's specialization says:
//   kBlock, kBlockBytes      weights and bytes of a block of the file
//   kCode8, 4, 2, 1          which planes it has; code8(i) to code1(i) where weight i of a block has those bits
//   kSides, side(j)
// Derived: kBytesAt to kSideAt, where planes and sides begin in a tile; kTileBytes.
template <TypeId id>
struct FileBlock;

struct NoPlanes {
  static constexpr bool kCode8 = false, kCode4 = false, kCode2 = false, kCode1 = false;
  static HOST_DEVICE constexpr Place8 code8(int) { return {}; }
  static HOST_DEVICE constexpr Place8 code4(int) { return {}; }
  static HOST_DEVICE constexpr Place8 code2(int) { return {}; }
  static HOST_DEVICE constexpr Place8 code1(int) { return {}; }
};

// Blocks of 32: nibble j of the low halves of 16 bytes, then of the high ones; what scales them comes first.
template <int kBytes, int kNibblesAt, int kScaleBytes>
struct Nibbles32 : NoPlanes {
  static constexpr int kBlock = 32, kBlockBytes = kBytes, kSides = 1;
  static constexpr bool kCode4 = true;
  static HOST_DEVICE constexpr Place8 code4(int i) { return {kNibblesAt + i % 16, 4 * (i / 16)}; }
  static HOST_DEVICE constexpr Side side(int) { return {0, kScaleBytes}; }
};
template <>
struct FileBlock<TypeId::Q4_0> : Nibbles32<18, 2, 2> {};
template <>
struct FileBlock<TypeId::IQ4_NL> : Nibbles32<18, 2, 2> {};
template <>
struct FileBlock<TypeId::Q4_1> : Nibbles32<20, 4, 4> {};
template <>
struct FileBlock<TypeId::Q5_0> : Nibbles32<22, 6, 2> {
  static constexpr bool kCode1 = true;
  static HOST_DEVICE constexpr Place8 code1(int i) { return {2 + i / 8, i % 8}; }
};
template <>
struct FileBlock<TypeId::Q5_1> : Nibbles32<24, 8, 4> {
  static constexpr bool kCode1 = true;
  static HOST_DEVICE constexpr Place8 code1(int i) { return {4 + i / 8, i % 8}; }
};
template <>
struct FileBlock<TypeId::Q8_0> : NoPlanes {
  static constexpr int kBlock = 32, kBlockBytes = 34, kSides = 1;
  static constexpr bool kCode8 = true;
  static HOST_DEVICE constexpr Place8 code8(int i) { return {2 + i, 0}; }
  static HOST_DEVICE constexpr Side side(int) { return {0, 2}; }
};
template <>
struct FileBlock<TypeId::Q4_K> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 144, kSides = 1;
  static constexpr bool kCode4 = true;
  static HOST_DEVICE constexpr Place8 code4(int i) { return {16 + 32 * (i / 64) + i % 32, 4 * (i / 32 % 2)}; }
  static HOST_DEVICE constexpr Side side(int) { return {0, 16}; }
};
template <>
struct FileBlock<TypeId::Q5_K> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 176, kSides = 1;
  static constexpr bool kCode4 = true, kCode1 = true;
  static HOST_DEVICE constexpr Place8 code4(int i) { return {48 + 32 * (i / 64) + i % 32, 4 * (i / 32 % 2)}; }
  static HOST_DEVICE constexpr Place8 code1(int i) { return {16 + i % 32, i / 32}; }
  static HOST_DEVICE constexpr Side side(int) { return {0, 16}; }
};
template <>
struct FileBlock<TypeId::Q6_K> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 210, kSides = 2;
  static constexpr bool kCode4 = true, kCode2 = true;
  static HOST_DEVICE constexpr Place8 code4(int i) {
    return {64 * (i / 128) + 32 * (i / 32 % 2) + i % 32, 4 * (i / 64 % 2)};
  }
  static HOST_DEVICE constexpr Place8 code2(int i) { return {128 + 32 * (i / 128) + i % 32, 2 * (i / 32 % 4)}; }
  static HOST_DEVICE constexpr Side side(int j) { return j == 0 ? Side{192, 16} : Side{208, 2}; }
};
template <>
struct FileBlock<TypeId::Q2_K> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 84, kSides = 2;
  static constexpr bool kCode2 = true;
  static HOST_DEVICE constexpr Place8 code2(int i) { return {16 + 32 * (i / 128) + i % 32, 2 * (i / 32 % 4)}; }
  static HOST_DEVICE constexpr Side side(int j) { return j == 0 ? Side{0, 16} : Side{80, 4}; }
};
template <>
struct FileBlock<TypeId::Q3_K> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 110, kSides = 2;
  static constexpr bool kCode2 = true, kCode1 = true;
  static HOST_DEVICE constexpr Place8 code2(int i) { return {32 + 32 * (i / 128) + i % 32, 2 * (i / 32 % 4)}; }
  static HOST_DEVICE constexpr Place8 code1(int i) { return {i % 32, i / 32}; }
  static HOST_DEVICE constexpr Side side(int j) { return j == 0 ? Side{96, 12} : Side{108, 2}; }
};
template <>
struct FileBlock<TypeId::IQ4_XS> : NoPlanes {
  static constexpr int kBlock = 256, kBlockBytes = 136, kSides = 1;
  static constexpr bool kCode4 = true;
  static HOST_DEVICE constexpr Place8 code4(int i) { return {8 + 16 * (i / 32) + i % 16, 4 * (i / 16 % 2)}; }
  static HOST_DEVICE constexpr Side side(int) { return {0, 8}; }
};
template <>
struct FileBlock<TypeId::F16> : NoPlanes {
  static constexpr int kBlock = 1, kBlockBytes = 2, kSides = 0;
  static HOST_DEVICE constexpr Side side(int) { return {}; }
};
template <>
struct FileBlock<TypeId::BF16> : FileBlock<TypeId::F16> {};
template <>
struct FileBlock<TypeId::F32> : NoPlanes {
  static constexpr int kBlock = 1, kBlockBytes = 4, kSides = 0;
  static HOST_DEVICE constexpr Side side(int) { return {}; }
};

template <TypeId id>
struct Tile : FileBlock<id> {
  using File = FileBlock<id>;
  static constexpr TypeId kId = id;
  static constexpr bool kQuantized = File::kBlock > 1;
  static constexpr int kBlocks = kTileColumns / File::kBlock;  // of a row
  static constexpr int kCode8At = 0;
  static constexpr int kCode4At = kCode8At + (File::kCode8 ? 4096 : 0);
  static constexpr int kCode2At = kCode4At + (File::kCode4 ? 2048 : 0);
  static constexpr int kCode1At = kCode2At + (File::kCode2 ? 1024 : 0);
  static constexpr int kSidesAt = kCode1At + (File::kCode1 ? 512 : 0);
  static constexpr int kTileBytes = kTileRows * kBlocks * File::kBlockBytes;
  // Bytes of side j that one row has, and where side j begins.
  static HOST_DEVICE constexpr int row_bytes(int j) { return File::side(j).bytes * kBlocks; }
  static HOST_DEVICE constexpr int side_at(int j) { return kSidesAt + (j > 0 ? kTileRows * row_bytes(0) : 0); }
};

// The byte of weight (row, k) in a plane of groups of 32, whose byte holds `groups` groups, and the group's place in
// it.
struct PlaneByte {
  int byte, slot;
};
HOST_DEVICE constexpr PlaneByte plane_byte(int groups, int row, int k) {
  const int lane = row % 8 * 4 + k % 16 / 4, reg = row / 8 + k % 32 / 16 * 2;
  return {k / (32 * groups) * 512 + lane * 16 + reg * 4 + k % 4, k / 32 % groups};
}
// The other way: the row of a byte of a plane, and its column in the first of the byte's groups.
struct PlaneWeight {
  int row, k;
};
HOST_DEVICE constexpr PlaneWeight plane_weight(int groups, int byte) {
  const int lane = byte / 16 % 32, reg = byte / 4 % 4;
  return {lane / 4 + 8 * (reg % 2), byte / 512 * 32 * groups + 16 * (reg / 2) + 4 * (lane % 4) + byte % 4};
}
// Halves: the byte offset of weight (row, k), and the way back.
HOST_DEVICE constexpr int half_byte(int row, int k) {
  const int lane = row % 8 * 4 + k % 8 / 2, reg = row / 8 + k % 16 / 8 * 2;
  return k / 16 * 512 + lane * 16 + reg * 4 + k % 2 * 2;
}
HOST_DEVICE constexpr PlaneWeight half_weight(int byte) {
  const int lane = byte / 16 % 32, reg = byte / 4 % 4;
  return {lane / 4 + 8 * (reg % 2), byte / 512 * 16 + 8 * (reg / 2) + 2 * (lane % 4) + byte / 2 % 2};
}

// Calls f.template operator()<TypeId>() for the format of that number; false where there is none such.
template <class F>
bool with_format(TypeId id, F&& f) {
  const auto try_one = [&]<TypeId candidate>() {
    return id == candidate && (f.template operator()<candidate>(), true);
  };
  return try_one.template operator()<TypeId::F32>() || try_one.template operator()<TypeId::F16>() ||
         try_one.template operator()<TypeId::BF16>() || try_one.template operator()<TypeId::Q4_0>() ||
         try_one.template operator()<TypeId::Q4_1>() || try_one.template operator()<TypeId::Q5_0>() ||
         try_one.template operator()<TypeId::Q5_1>() || try_one.template operator()<TypeId::Q8_0>() ||
         try_one.template operator()<TypeId::Q2_K>() || try_one.template operator()<TypeId::Q3_K>() ||
         try_one.template operator()<TypeId::Q4_K>() || try_one.template operator()<TypeId::Q5_K>() ||
         try_one.template operator()<TypeId::Q6_K>() || try_one.template operator()<TypeId::IQ4_NL>() ||
         try_one.template operator()<TypeId::IQ4_XS>();
}

}  // namespace gristmill::cuda
