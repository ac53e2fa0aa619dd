// Who takes which tile of a decode product: each one once, in runs; and which blocks have a part of a row tile.
#include <random>
#include <vector>

#include "check.h"
#include "cuda/decode_line.h"
#include "device_under_test.h"

namespace gristmill::cuda::test {
namespace {

void check_dividers() {
  std::mt19937 random(1);
  for (int d = 1; d < 2000; d = d < 300 ? d + 1 : d * 3 / 2) {
    const Divider by = divider(d);
    for (const int n : {0, 1, d - 1, d, d + 1, 2 * d - 1, 2147483647, 2147483647 / d * d, 2147483647 / d * d - 1})
      CHECK(by.divide(n) == n / d, "%d / %d is %d", n, d, by.divide(n));
    for (int i = 0; i < 200; ++i) {
      const int n = int(random() & 0x7fffffffu);
      CHECK(by.divide(n) == n / d, "%d / %d is %d", n, d, by.divide(n));
    }
  }
}

void check_line(int row_tiles, int column_tiles, int n_blocks, int most_rows, int n_warps) {
  const DecodeLine line = make_line(row_tiles, column_tiles, n_blocks, most_rows);
  const int tiles = row_tiles * column_tiles;
  const auto shape = [&] {
    return std::to_string(row_tiles) + " x " + std::to_string(column_tiles) + ", " + std::to_string(n_blocks) +
           " blocks, " + std::to_string(most_rows) + " rows, " + std::to_string(n_warps) + " warps";
  };
  CHECK(line.n_blocks == std::min(n_blocks, tiles), "%s", shape().c_str());
  std::vector<int> taken(size_t(tiles), -1);                             // by which block
  std::vector<std::vector<int>> blocks(static_cast<size_t>(row_tiles));  // that have a part, ascending
  for (int b = 0; b < line.n_blocks; ++b) {
    const Stretch stretch(line, b);
    const int each = stretch.end - stretch.begin;
    CHECK(each >= tiles / line.n_blocks && each <= tiles / line.n_blocks + 1, "%s", shape().c_str());
    int count = 0;
    for (int warp = 0; warp < n_warps; ++warp) {
      for (Runs runs(line, stretch, warp, n_warps); runs.next();) {
        const Run& run = runs.at();
        CHECK(run.row % n_warps == warp && run.row < most_rows, "%s: row %d", shape().c_str(), run.row);
        const int row_tile = line.row_tile(run.group, run.row);
        for (int column = run.begin; column < run.end; ++column) {
          int& by = taken[size_t(row_tile * column_tiles + column)];
          CHECK(by < 0, "%s: taken twice", shape().c_str());
          by = b;
          ++count;
        }
        auto& list = blocks[size_t(row_tile)];
        if (list.empty() || list.back() != b) list.push_back(b);
        CHECK(line.first_block(run.group, run.row) <= b && b <= line.last_block(run.group, run.row), "%s",
              shape().c_str());
      }
    }
    CHECK(count == each, "%s: block %d has %d tiles of %d", shape().c_str(), b, count, each);
  }
  for (int group = 0, row_tile = 0; row_tile < row_tiles; ++group)
    for (int row = 0; row < line.groups.size(group); ++row, ++row_tile) {
      CHECK(line.row_tile(group, row) == row_tile, "%s", shape().c_str());
      const int first = line.first_block(group, row), last = line.last_block(group, row);
      const auto& list = blocks[size_t(row_tile)];
      CHECK(int(list.size()) == last - first + 1 && list.front() == first && list.back() == last,
            "%s: row tile %d is said to be of blocks %d to %d, and %zu have it", shape().c_str(), row_tile, first, last,
            list.size());
    }
}

}  // namespace
}  // namespace gristmill::cuda::test

int main() {
  using namespace gristmill;
  cuda::emulation::set_seed(1);
  cuda::test::check_dividers();
  std::mt19937 random(2);
  const auto one_of = [&](int n) { return 1 + int(random() % unsigned(n)); };
  for (int i = 0; i < 3000; ++i) {
    const int most_rows = 2 * one_of(8);
    cuda::test::check_line(one_of(60), one_of(30), one_of(150), most_rows, i % 2 == 0 ? most_rows : most_rows / 2);
  }
  cuda::test::check_line(448, 20, 132, 16, 16);   // q, k and v of QwQ-32B on an H200
  cuda::test::check_line(3456, 20, 132, 16, 16);  // gate and up
  cuda::test::check_line(320, 108, 132, 16, 8);   // down
  return test::failures("test_decode_line");
}
