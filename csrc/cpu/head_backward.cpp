// Gradients and updates.
#include <cmath>

#include "cpu/head.h"

namespace fastclf::cpu {

namespace {

// Transposes a matrix of 64 x 64 bits: bit c of in[r] becomes bit r of out[c]. Hacker's Delight, section 7-3.
void transpose_bits(const uint64_t* in, uint64_t* out) {
  for (size_t i = 0; i < kTile; ++i) out[i] = in[i];
  uint64_t mask = 0x00000000ffffffffu;
  for (size_t j = 32; j != 0; j >>= 1, mask ^= mask << j) {
    for (size_t k = 0; k < kTile; k = ((k | j) + 1) & ~j) {
      const uint64_t swap = ((out[k] >> j) ^ out[k | j]) & mask;
      out[k] ^= swap << j;
      out[k | j] ^= swap;
    }
  }
}

}  // namespace

// All that a tile of a block's inputs needs from the gradient of its outputs.
void HeadEngine::backward_tile(size_t number, const Batch& batch, size_t t, const Scratch& scratch) const {
  const Layer& layer = layers_[number];
  float* g = number > 0 ? layers_[number - 1].d_tile(t) : scratch.g.get();
  for (size_t o = 0; o < layer.out_tiles; ++o) {
    code_.product({.bits = layer.bits_tile(o),
                   .coef = layer.d_tile(o),
                   .panel = layer.w_tile(t) + o * kTile * kTile,
                   .out = g,
                   .rows = batch.rows,
                   .cols = tile_width(layer.spec.n_in, t),
                   .first = o == 0});
  }
  affine_gradient(layer, batch, t, g);
  if (number > 0) input_gradient(layer, layers_[number - 1], batch, t, g);
  step_vector(layer.gamma, t, batch);
  step_vector(layer.beta, t, batch);
  weight_gradient(number, batch, t, scratch);
}

void HeadEngine::affine_gradient(const Layer& layer, const Batch& batch, size_t t, float* g) const {
  const auto scale = static_cast<float>(1 / (1 - layer.spec.p));
  code_.affine_gradient(g, layer.xhat_tile(t), layer.keep_tile(t), scale, batch.rows,
                        layer.gamma.gradient.get() + t * kTile, layer.beta.gradient.get() + t * kTile);
}

// The gradient of the output of the block below, through BatchNorm and ReLU, row by row and transposed.
void HeadEngine::input_gradient(const Layer& layer, const Layer& below, const Batch& batch, size_t t, float* g) const {
  float abc[3 * kTile];
  const float share = batch.frozen_bn ? 0.f : 1 / static_cast<float>(batch.rows);
  for (size_t j = 0; j < kTile; ++j) {
    const size_t c = t * kTile + j;
    abc[j] = layer.gamma.value[c] * layer.rstd[c];
    abc[kTile + j] = abc[j] * share * layer.beta.gradient[c];
    abc[2 * kTile + j] = abc[j] * share * layer.gamma.gradient[c];
  }
  const uint64_t* active = layer.active_tile(t);
  code_.input_gradient(g, layer.xhat_tile(t), active, abc, batch.rows, below.bias.gradient.get() + t * kTile);
  step_vector(below.bias, t, batch);
  uint64_t* bits = below.bits_tile(t);
  for (size_t b = 0; b < tiles(batch.rows) * kTile; ++b) bits[b] = b < batch.rows ? active[b] : 0;
  for (size_t block = 0; block < tiles(batch.rows); ++block) {
    code_.transpose(g + block * kTile * kTile, below.dt_block(block) + t * kTile * kTile);
    transpose_bits(bits + block * kTile, below.bits_t_block(block) + t * kTile);
  }
}

// The weight's gradient for the tile's inputs, block by block of the batch.
void HeadEngine::weight_gradient(size_t number, const Batch& batch, size_t t, const Scratch& scratch) const {
  const Layer& layer = layers_[number];
  const size_t width = tile_width(layer.spec.n_in, t);
  float* sums = op_.clip > 0 ? layer.gradient_tile(t) : scratch.partial.get();
  for (size_t block = 0; block < tiles(batch.rows); ++block) {
    const float* operand = layer.operand_tile(t) + block * kTile * kTile;
    if (layer.by_input) {
      code_.transpose(operand, scratch.operand_t.get());
      transpose_bits(layer.keep_tile(t) + block * kTile, scratch.keep_t.get());
      for (size_t i = 0; i < kTile; ++i) scratch.keep_t[i] &= low_bits(tile_width(batch.rows, block));
    }
    for (size_t o = 0; o < layer.out_tiles; ++o) {
      const size_t outputs = tile_width(layer.spec.n_out, o);
      Product op = {.bits = layer.bits_t_block(block) + o * kTile,
                    .coef = layer.dt_block(block) + o * kTile * kTile,
                    .panel = operand,
                    .out = sums + o * kTile * kTile,
                    .rows = outputs,
                    .cols = width,
                    .first = block == 0};
      if (layer.by_input) {
        op.bits = scratch.keep_t.get();
        op.coef = scratch.operand_t.get();
        op.panel = layer.d_tile(o) + block * kTile * kTile;
        op.rows = width;
        op.cols = outputs;
      }
      if (op_.clip > 0 || block + 1 < tiles(batch.rows)) {
        code_.product(op);
      } else {
        float* w = layer.by_input ? layer.wt_block(o, t) : layer.w_block(o, t);
        code_.product_update(op, w, layer.velocity_tile(t) + o * kTile * kTile, batch.sgd);
        layer.copy_block(o, t, code_);
      }
    }
  }
  if (op_.clip > 0) squares_[number][t] = code_.sum_of_squares(sums, layer.out_pad * kTile);
}

void HeadEngine::output_bias_gradient(const Batch& batch) const {
  const Layer& layer = layers_.back();
  for (size_t t = 0; t < layer.out_tiles; ++t) {
    code_.column_sums(layer.d_tile(t), batch.rows, layer.bias.gradient.get() + t * kTile);
    step_vector(layer.bias, t, batch);
  }
}

void HeadEngine::step_vector(const Vector& v, size_t t, const Batch& batch) const {
  if (op_.clip > 0) return;
  const size_t first = t * kTile;
  code_.update(v.value.get() + first, v.velocity.get() + first, v.gradient.get() + first, tile_width(v.n, t),
               batch.sgd);
}

double HeadEngine::gradient_norm() const {
  double total = 0;
  for (size_t n = 0; n < layers_.size(); ++n) {
    const Layer& layer = layers_[n];
    for (size_t t = 0; t < layer.in_tiles; ++t) total += squares_[n][t];
    for (const Vector* v : {&layer.bias, &layer.gamma, &layer.beta})
      total += code_.sum_of_squares(v->gradient.get(), v->n);
  }
  return std::sqrt(total);
}

// As torch.nn.utils.clip_grad_norm_, then the update. Every member computes the same norm.
void HeadEngine::clipped_update(Team& team, const Batch& batch) const {
  Batch clipped = batch;
  clipped.sgd.scale = static_cast<float>(std::fmin(1.0, op_.clip / (gradient_norm() + 1e-6)));
  for (const Layer& layer : layers_) {
    team.for_each(layer.in_tiles, [&](size_t t) {
      for (size_t o = 0; o < layer.out_tiles; ++o) {
        const size_t at = o * kTile * kTile;
        float* w = layer.by_input ? layer.wt_block(o, t) : layer.w_block(o, t);
        code_.update(w, layer.velocity_tile(t) + at, layer.gradient_tile(t) + at, kTile * kTile, clipped.sgd);
        layer.copy_block(o, t, code_);
      }
      if (t > 0) return;
      for (const Vector* v : {&layer.bias, &layer.gamma, &layer.beta}) {
        code_.update(v->value.get(), v->velocity.get(), v->gradient.get(), v->n, clipped.sgd);
      }
    });
  }
}

}  // namespace fastclf::cpu
