// Sums over the rows of a matrix, for every column, in a fixed order.
//
// A block takes 32 columns and 32 rows: a lane of each of its 8 warps has one column, a warp 4 of the rows. Its sums go
// into `partial`; the last block of these columns to come adds the partial sums up, always in the order of the rows.
#pragma once

#include "cuda/reduce.cuh"

namespace fastclf::cuda {

constexpr unsigned kColumns = 32, kRowWarps = 8, kRowsEach = 4, kTileRows = kRowWarps * kRowsEach;

inline Grid column_grid(size_t rows, size_t cols) {
  return {dim3(blocks_for(cols, kColumns), blocks_for(rows, kTileRows)), kColumns * kRowWarps};
}

FASTCLF_DEVICE size_t tile_column() { return size_t{blockIdx.x} * kColumns + lane(); }
FASTCLF_DEVICE size_t tile_row(unsigned i) { return size_t{blockIdx.y} * kTileRows + warp() + i * kRowWarps; }

// The sum over the block's warps, for every lane; all threads get their lane's.
FASTCLF_DEVICE float block_reduce(float v) {
  FASTCLF_SHARED(float, part, kRowWarps* kColumns);
  __syncthreads();  // the sums before this one have been read
  part[threadIdx.x] = v;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < kRowWarps; ++i) sum += part[i * kColumns + lane()];
  return sum;
}

// v, each thread's share of K sums, becomes their totals over all rows, in the one block where this is true.
template <unsigned K>
FASTCLF_DEVICE bool column_totals(float (&v)[K], size_t cols, float* partial, unsigned* block_counter) {
  const size_t column = tile_column();
  for (unsigned k = 0; k < K; ++k) {
    v[k] = block_reduce(v[k]);
    if (warp() == 0 && column < cols) partial[(size_t{blockIdx.y} * K + k) * cols + column] = v[k];
  }
  if (!last_block(block_counter + blockIdx.x, gridDim.y)) return false;
  for (unsigned k = 0; k < K; ++k) {
    float sum = 0;
    for (size_t t = warp(); column < cols && t < gridDim.y; t += kRowWarps) sum += partial[(t * K + k) * cols + column];
    v[k] = block_reduce(sum);
  }
  return true;
}

}  // namespace fastclf::cuda
