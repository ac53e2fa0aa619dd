// How the tiles of a decode product are shared out. Row tiles fall into groups of at most as many as a block has shares
// for. The tiles in order (group, column tile, row tile of the group) are one long line, and each block takes an equal
// stretch of it ("stream-K"). In a block a row of the group is one warp's, or one of a warp's: all go through the same
// columns side by side, each reading its weights in the order in which they lie.
//
//             columns ->
//     row 0   a a b b b b c c c
//     row 1   a a b b b b c c c      the stretches of blocks a, b and c in a group of four row tiles
//     row 2   a b b b b c c c c
//     row 3   a b b b b c c c c
//
// A row tile that lies in several stretches is summed from its parts in order, so a result depends on the device, the
// shapes and the format only, never on the number of tokens.
#pragma once

#include <cstdint>

#include "cuda/device/launch.h"

namespace gristmill::cuda {

// n / d for n below 2^31 by a product with what the host has made of d: a division takes a warp a hundred clocks, and
// what is ahead of the first copy or behind the last sum nothing hides. After Granlund and Montgomery, "Division by
// invariant integers using multiplication", figure 4.1.
struct Divider {
  uint32_t factor = 1, shift = 0;

  HOST_DEVICE int divide(int n) const {
    return int((uint32_t((uint64_t(factor) * uint32_t(n)) >> 32) + uint32_t(n)) >> shift);
  }
};
inline Divider divider(int d) {
  Divider by;
  while ((int64_t{1} << by.shift) < d) ++by.shift;
  by.factor = uint32_t(((uint64_t{1} << 32) * ((uint64_t{1} << by.shift) - uint64_t(d))) / uint64_t(d) + 1);
  return by;
}

// Things in a line as n parts that differ by one thing at most: the first `rest` have each + 1.
struct EqualParts {
  int each, rest;
  Divider by_each, by_larger;

  // Where part i begins, which is where part i - 1 ends.
  HOST_DEVICE int begin(int i) const { return i * each + (i < rest ? i : rest); }
  HOST_DEVICE int size(int i) const { return each + (i < rest ? 1 : 0); }
  // The part that holds thing i; each is 1 at least.
  HOST_DEVICE int of(int i) const {
    const int larger = rest * (each + 1);
    return i < larger ? by_larger.divide(i) : rest + by_each.divide(i - larger);
  }
  // i / size(part)
  HOST_DEVICE int divide(int i, int part) const { return part < rest ? by_larger.divide(i) : by_each.divide(i); }
};
inline EqualParts equal_parts(int count, int n) {
  const int each = count / n;
  return {each, count % n, divider(each), divider(each + 1)};
}

struct DecodeLine {
  int row_tiles, column_tiles;
  Divider by_columns;
  EqualParts groups;  // of the row tiles, n_groups
  EqualParts blocks;  // of the line, n_blocks
  int n_blocks;

  HOST_DEVICE int row_tile(int group, int row) const { return groups.begin(group) + row; }
  HOST_DEVICE int group_begin(int group) const { return groups.begin(group) * column_tiles; }
  // The blocks that have a part of a row tile; all between the first and the last have.
  HOST_DEVICE int first_block(int group, int row) const { return blocks.of(group_begin(group) + row); }
  HOST_DEVICE int last_block(int group, int row) const {
    return blocks.of(group_begin(group + 1) - groups.size(group) + row);
  }
};

// n_blocks: at most. most_rows: of a group. A stretch has a tile of every row at least, or there would be blocks that
// have nothing of a row between two that have: groups are smaller where a matrix has too few tiles.
inline DecodeLine make_line(int row_tiles, int column_tiles, int n_blocks, int most_rows) {
  const int tiles = row_tiles * column_tiles;
  n_blocks = n_blocks < tiles ? n_blocks : tiles;
  const int each = tiles / n_blocks, rows = each < most_rows ? each : most_rows;
  return {row_tiles,
          column_tiles,
          divider(column_tiles),
          equal_parts(row_tiles, (row_tiles + rows - 1) / rows),
          equal_parts(tiles, n_blocks),
          n_blocks};
}

// A tile of the line.
struct TilePlace {
  int group, column, row;
};
HOST_DEVICE TilePlace place_of(const DecodeLine& line, int tile) {
  const int group = line.groups.of(line.by_columns.divide(tile)), inside = tile - line.group_begin(group);
  const int column = line.groups.divide(inside, group);
  return {group, column, inside - column * line.groups.size(group)};
}

// A block's part of the line.
struct Stretch {
  int begin, end;
  TilePlace first, last;  // its tiles

  HOST_DEVICE Stretch(const DecodeLine& line, int block)
      : begin(line.blocks.begin(block)),
        end(line.blocks.begin(block + 1)),
        first(place_of(line, begin)),
        last(place_of(line, end - 1)) {}
};

// A run of columns of one row tile.
struct Run {
  int group, row;  // of the group
  int begin, end;
};
// What a stretch has of a row of a group: begin is not below end where that is nothing.
HOST_DEVICE Run run_of(const DecodeLine& line, const Stretch& s, int group, int row) {
  return {group, row, group == s.first.group ? s.first.column + (row < s.first.row ? 1 : 0) : 0,
          group == s.last.group ? s.last.column + (row <= s.last.row ? 1 : 0) : line.column_tiles};
}

// What a warp has of a stretch: rows `row`, row + step, ... of each group. next() goes to the first run that is not
// empty, then to the one behind it.
class Runs {
 public:
  HOST_DEVICE Runs(const DecodeLine& line, const Stretch& stretch, int row, int step)
      : line_(line), stretch_(stretch), first_row_(row), step_(step), run_{stretch.first.group, row - step, 0, 0} {}

  HOST_DEVICE bool next() {
    for (;;) {
      int group = run_.group, row = run_.row + step_;
      if (row >= line_.groups.size(group)) {
        if (++group > stretch_.last.group) return false;
        run_ = {group, first_row_ - step_, 0, 0};
        continue;
      }
      run_ = run_of(line_, stretch_, group, row);
      if (run_.begin < run_.end) return true;
    }
  }
  HOST_DEVICE const Run& at() const { return run_; }

 private:
  const DecodeLine& line_;
  const Stretch& stretch_;
  int first_row_, step_;
  Run run_;
};

}  // namespace gristmill::cuda
