// Logits of many rows: BatchNorm folded into the weights, blocks of 64 rows from gather to output by one thread.
#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/head.h"

namespace fastclf::cpu {

namespace {

// W (a x + c) + b as (W a) x + (b + W c), with a = gamma / sqrt(var + eps) and c = beta - mean a.
struct Folded {
  Folded(const HeadLayer& of, const VectorCode& code)
      : n_in(of.n_in),
        n_out(of.n_out),
        in_pad(tiles(n_in) * kTile),
        wt(in_pad * tiles(n_out) * kTile),
        bias(tiles(n_out) * kTile) {
    std::vector<float> a(n_in), c(n_in);
    for (size_t i = 0; i < n_in; ++i) {
      a[i] = of.gamma[i] / std::sqrt(of.running_var[i] + of.eps);
      c[i] = of.beta[i] - of.running_mean[i] * a[i];
    }
    for (size_t o = 0; o < tiles(n_out); ++o) {
      for (size_t t = 0; t < tiles(n_in); ++t) fold_block(of, code, a, o, t);
    }
    for (size_t h = 0; h < n_out; ++h) {
      double sum = of.bias[h];
      for (size_t i = 0; i < n_in; ++i) sum += static_cast<double>(of.weight[h * n_in + i]) * c[i];
      bias[h] = static_cast<float>(sum);
    }
  }

  void fold_block(const HeadLayer& of, const VectorCode& code, const std::vector<float>& a, size_t o, size_t t) const {
    const Buffer<float> block(kTile * kTile);
    for (size_t h = 0; h < tile_width(n_out, o); ++h) {
      const float* row = of.weight + (o * kTile + h) * n_in + t * kTile;
      for (size_t j = 0; j < tile_width(n_in, t); ++j) block[h * kTile + j] = row[j] * a[t * kTile + j];
    }
    code.transpose(block.get(), panel(o, t));
  }

  float* panel(size_t o, size_t t) const { return wt.get() + (o * in_pad + t * kTile) * kTile; }

  size_t n_in, n_out, in_pad;
  Buffer<float> wt;    // [out tile][in_pad][64]
  Buffer<float> bias;  // [n_out], padded
};

// Activations of up to 64 rows at one place of the head. They are made before the team runs, and zeroed by the member
// that uses them.
struct Block {
  explicit Block(size_t n)
      : n_tiles(tiles(n)),
        x(Buffer<float>::unset(n_tiles * kTile * kTile)),
        bits(Buffer<uint64_t>::unset(n_tiles * kTile)) {}
  void clear() const {
    std::fill_n(x.get(), n_tiles * kTile * kTile, 0.f);
    std::fill_n(bits.get(), n_tiles * kTile, uint64_t{0});
  }
  float* tile(size_t t) const { return x.get() + t * kTile * kTile; }

  size_t n_tiles;
  Buffer<float> x;        // [tile][64][64]
  Buffer<uint64_t> bits;  // [tile][64], where it is not zero
};

void gather_block(const HeadPredict& op, const VectorCode& code, size_t first, size_t count, const Block& to) {
  const size_t width = op.layers[0].n_in;
  for (size_t t = 0; t < tiles(width); ++t) {
    code.gather_tile({op.rows, op.dtype == DType::float16, width, t * kTile, tile_width(width, t), op.index + first,
                      count, to.tile(t), op.index + first + count, std::min(kTile, op.count - first - count)});
    std::fill_n(to.bits.get() + t * kTile, count, low_bits(tile_width(width, t)));
  }
}

void forward_block(const Folded& layer, const VectorCode& code, size_t count, bool last, const Block& from,
                   const Block& to) {
  for (size_t o = 0; o < tiles(layer.n_out); ++o) {
    for (size_t t = 0; t < tiles(layer.n_in); ++t) {
      code.product({from.bits.get() + t * kTile, from.tile(t), layer.panel(o, t), to.tile(o), count,
                    tile_width(layer.n_out, o), t == 0});
    }
    if (last) {
      code.add_bias(to.tile(o), layer.bias.get() + o * kTile, count);
    } else {
      code.bias_relu(to.tile(o), layer.bias.get() + o * kTile, to.bits.get() + o * kTile, count);
    }
  }
}

// Before each layer, and after the last.
std::vector<Block> blocks_of(const std::vector<Folded>& layers) {
  std::vector<Block> x;
  x.emplace_back(layers[0].n_in);
  for (const Folded& layer : layers) x.emplace_back(layer.n_out);
  return x;
}

}  // namespace

Status head_predict(const HeadPredict& op, int threads) {
  const VectorCode& code = vector_code();
  std::vector<Folded> layers;
  for (size_t n = 0; n < op.n_layers; ++n) layers.emplace_back(op.layers[n], code);
  const size_t blocks = tiles(op.count), classes = layers.back().n_out;
  std::vector<std::vector<Block>> of_member(team_size(threads, blocks));
  for (std::vector<Block>& x : of_member) x = blocks_of(layers);
  run_team(static_cast<int>(of_member.size()), [&](Team& team, unsigned rank) noexcept {
    const std::vector<Block>& x = of_member[rank];
    for (const Block& block : x) block.clear();
    team.for_each(blocks, [&](size_t i) {
      const size_t first = i * kTile, count = tile_width(op.count, i);
      gather_block(op, code, first, count, x[0]);
      for (size_t n = 0; n < layers.size(); ++n)
        forward_block(layers[n], code, count, n + 1 == layers.size(), x[n], x[n + 1]);
      for (size_t b = 0; b < count; ++b) {
        for (size_t o = 0; o < tiles(classes); ++o) {
          std::copy_n(x.back().tile(o) + b * kTile, tile_width(classes, o), op.out + (first + b) * classes + o * kTile);
        }
      }
    });
  });
  return {};
}

}  // namespace fastclf::cpu
