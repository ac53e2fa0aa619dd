// Products of tiles: sums of up to two tiles of tokens by two panels of 16 rows of weights.
#pragma once

#include "cpu/isa/amx_bf16/operands.h"

namespace gristmill::cpu {
namespace {

// Where sums lie, float32: that of a tile of tokens and a panel, 16 lines of 16.
struct SumTiles {
  std::byte* p;
  int64_t tile_bytes, panel_bytes, line_bytes;  // to the next tile of tokens, panel, token
  template <int kTile, int kPanel>
  std::byte* at() const {
    return p + kTile * tile_bytes + kPanel * panel_bytes;
  }
};

// Which operand tdpbf16ps has first, as [16][32 k]; the other is [16 pairs of k][16][2]. Sums have the first's as
// lines.
enum class Order { kStreamedFirst, kKeptFirst };

// The operands' tiles [step][plane], x_bytes from one tile of tokens to the next, w_bytes from one panel to the next.
// The sums are added to what is there unless this is `first`. meanwhile() runs once a step.
template <int kW, int kX, Order kOrder, int T, int R, class Meanwhile>
GRISTMILL_INLINE void multiply(const std::byte* x, int64_t x_bytes, const std::byte* w, int64_t w_bytes, int n_steps,
                               bool first, const SumTiles& sums, const Meanwhile& meanwhile) {
  for_constants<T * R>([&](auto i) GRISTMILL_LAMBDA {
    if (first) {
      clear_tile<i>();
    } else {
      stream_tile<i>(sums.template at<i / R, i % R>(), sums.line_bytes);
    }
  });
  const auto load_x = [&](int s, int plane) GRISTMILL_LAMBDA {
    for_constants<T>([&](auto t)
                         GRISTMILL_LAMBDA { stream_tile<4 + t>(x + t * x_bytes + (s * kX + plane) * kTileBytes); });
  };
  const auto load_w = [&](int s, int plane) GRISTMILL_LAMBDA {
    for_constants<R>([&](auto r)
                         GRISTMILL_LAMBDA { load_tile<6 + r>(w + r * w_bytes + (s * kW + plane) * kTileBytes); });
  };
  const auto all = [&]() GRISTMILL_LAMBDA {
    for_constants<T * R>([&](auto i) GRISTMILL_LAMBDA {
      if constexpr (kOrder == Order::kStreamedFirst) {
        multiply_tiles<i, 4 + i / R, 6 + i % R>();
      } else {
        multiply_tiles<i, 6 + i % R, 4 + i / R>();
      }
    });
  };
  for (int s = 0; s < n_steps; ++s) {
    load_w(s, 0);
    if constexpr (kX == 2) {
      load_x(s, 1);
      all();
    }
    load_x(s, 0);
    all();
    if constexpr (kW == 2) {
      load_w(s, 1);
      all();
    }
    meanwhile();
  }
  for_constants<T * R>([&](auto i)
                           GRISTMILL_LAMBDA { store_tile<i>(sums.template at<i / R, i % R>(), sums.line_bytes); });
}

// The same for one tile or two, one panel or two.
template <int kW, int kX, Order kOrder, class Meanwhile>
GRISTMILL_INLINE void multiply_some(bool two_tiles, bool two_panels, const std::byte* x, int64_t x_bytes,
                                    const std::byte* w, int64_t w_bytes, int n_steps, bool first, const SumTiles& sums,
                                    const Meanwhile& meanwhile) {
  if (two_tiles) {
    two_panels ? multiply<kW, kX, kOrder, 2, 2>(x, x_bytes, w, w_bytes, n_steps, first, sums, meanwhile)
               : multiply<kW, kX, kOrder, 2, 1>(x, x_bytes, w, w_bytes, n_steps, first, sums, meanwhile);
  } else {
    two_panels ? multiply<kW, kX, kOrder, 1, 2>(x, x_bytes, w, w_bytes, n_steps, first, sums, meanwhile)
               : multiply<kW, kX, kOrder, 1, 1>(x, x_bytes, w, w_bytes, n_steps, first, sums, meanwhile);
  }
}

}  // namespace
}  // namespace gristmill::cpu
