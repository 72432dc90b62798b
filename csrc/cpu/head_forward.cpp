// Rows to logits, loss and the gradient of the logits.
#include <algorithm>
#include <cmath>

#include "cpu/head.h"
#include "device/philox.h"

namespace fastclf::cpu {

namespace {

constexpr size_t kLossRows = 16;  // of one item; divides kTile

}  // namespace

void HeadEngine::input_tile(const Batch& batch, size_t t) const {
  const Layer& layer = layers_[0];
  code_.gather_tile({.src = op_.rows,
                     .half = op_.dtype == DType::float16,
                     .width = layer.spec.n_in,
                     .first = t * kTile,
                     .cols = tile_width(layer.spec.n_in, t),
                     .index = batch.sources,
                     .rows = batch.rows,
                     .out = layer.xhat_tile(t),
                     .ahead = batch.ahead,
                     .ahead_rows = batch.ahead_rows});
  normalise_tile(layer, 0, batch, t);
}

// A head whose lead has made xhat and the mask.
void HeadEngine::operand_tile(const Batch& batch, size_t t) const {
  const Layer &layer = layers_[0], &lead = *layer.lead;
  const size_t first = t * kTile;
  layer.follow_statistics(lead.mean.get() + first, lead.variance.get() + first, batch.rows, t);
  code_.normalise({.x = layer.xhat_tile(t),
                   .mean = nullptr,
                   .rstd = nullptr,
                   .gamma = layer.gamma.value.get() + first,
                   .beta = layer.beta.value.get() + first,
                   .keep = layer.keep_tile(t),
                   .scale = static_cast<float>(1 / (1 - layer.spec.p)),
                   .operand = layer.operand_tile(t),
                   .rows = batch.rows});
}

// From the layer's input, which lies in xhat, to xhat, its statistics, the mask and the operand.
void HeadEngine::normalise_tile(const Layer& layer, uint32_t number, const Batch& batch, size_t t) const {
  const size_t first = t * kTile, width = tile_width(layer.spec.n_in, t);
  float *mean = layer.mean.get() + first, *variance = layer.variance.get() + first, *rstd = layer.rstd.get() + first;
  if (batch.frozen_bn) {
    std::copy_n(layer.running_mean.value.get() + first, kTile, mean);
    std::copy_n(layer.running_var.value.get() + first, kTile, variance);
  } else {
    code_.moments(layer.xhat_tile(t), batch.rows, mean, variance);
    layer.follow_statistics(mean, variance, batch.rows, t);
  }
  for (size_t j = 0; j < kTile; ++j) rstd[j] = 1 / std::sqrt(variance[j] + layer.spec.eps);

  uint64_t* keep = layer.keep_tile(t);
  std::fill_n(keep, batch.rows, low_bits(width));
  if (layer.spec.p > 0) {
    DropoutRow dropped = {op_.seed, batch.step, number, 0, drop_below(layer.spec.p)};
    for (; dropped.row < batch.rows; ++dropped.row)
      keep[dropped.row] &= code_.keep_bits(dropped, static_cast<uint32_t>(t));
  }
  code_.normalise({.x = layer.xhat_tile(t),
                   .mean = mean,
                   .rstd = rstd,
                   .gamma = layer.gamma.value.get() + first,
                   .beta = layer.beta.value.get() + first,
                   .keep = keep,
                   .scale = static_cast<float>(1 / (1 - layer.spec.p)),
                   .operand = layer.operand_tile(t),
                   .rows = batch.rows});
}

// Tile t of a hidden block's output, made into the next block's operand.
void HeadEngine::hidden_tile(size_t number, const Batch& batch, size_t t) const {
  const Layer &layer = layers_[number], &next = layers_[number + 1];
  float* z = next.xhat_tile(t);
  for (size_t in = 0; in < layer.in_tiles; ++in) {
    code_.product({.bits = layer.keep_tile(in),
                   .coef = layer.operand_tile(in),
                   .panel = layer.wt_block(t, in),
                   .out = z,
                   .rows = batch.rows,
                   .cols = tile_width(layer.spec.n_out, t),
                   .first = in == 0});
  }
  code_.bias_relu(z, layer.bias.value.get() + t * kTile, next.active_tile(t), batch.rows);
  normalise_tile(next, static_cast<uint32_t>(number + 1), batch, t);
}

// Logits into d of the last layer, then their gradient in place, and the batch's losses.
void HeadEngine::logits(Team& team, const Batch& batch) const {
  const Layer& layer = layers_.back();
  const size_t rows = layer.out_tiles > 2 * team.size() ? kTile : kLossRows, chunks = (batch.rows + rows - 1) / rows;
  team.for_each(layer.out_tiles * chunks, [&](size_t item) {
    const size_t t = item / chunks, first = item % chunks * rows, count = std::min(rows, batch.rows - first);
    float* z = layer.d_tile(t) + first * kTile;
    for (size_t in = 0; in < layer.in_tiles; ++in) {
      code_.product({.bits = layer.keep_tile(in) + first,
                     .coef = layer.operand_tile(in) + first * kTile,
                     .panel = layer.wt_block(t, in),
                     .out = z,
                     .rows = count,
                     .cols = tile_width(layer.spec.n_out, t),
                     .first = in == 0});
    }
    code_.add_bias(z, layer.bias.value.get() + t * kTile, count);
  });
  const size_t groups = (batch.rows + kLossRows - 1) / kLossRows;
  team.for_each(groups, [&](size_t i) { loss_rows(batch, i * kLossRows, std::min(batch.rows, (i + 1) * kLossRows)); });
}

// What the mean over the batch multiplies each row's loss with.
float HeadEngine::mean_factor(const Batch& batch) const {
  if (op_.loss == Loss::bce) return 1 / static_cast<float>(batch.rows * layers_.back().spec.n_out);
  const auto* classes = static_cast<const int64_t*>(op_.targets);
  double total = 0;
  for (size_t b = 0; b < batch.rows; ++b) total += class_weight_[static_cast<size_t>(classes[batch.targets[b]])];
  return total > 0 ? static_cast<float>(1 / total) : 0.f;  // no row has weight: nothing is learnt
}

void HeadEngine::loss_rows(const Batch& batch, size_t first, size_t last) const {
  const Layer& layer = layers_.back();
  const size_t classes = layer.spec.n_out, block = first / kTile;
  const float mean = mean_factor(batch);
  for (size_t b = first; b < last; ++b) {
    const LossRow row = {.z = layer.d.get() + b * kTile,
                         .stride = layer.capacity * kTile,
                         .tiles = layer.out_tiles,
                         .weight = class_weight_.data(),
                         .smoothing = op_.smoothing,
                         .classes = static_cast<float>(classes)};
    const auto target = static_cast<size_t>(batch.targets[b]);
    row_loss_[b] = op_.loss == Loss::nll
                       ? code_.nll_row(row, static_cast<size_t>(static_cast<const int64_t*>(op_.targets)[target]),
                                       weight_sum_, mean)
                       : code_.bce_row(row, static_cast<const float*>(op_.targets) + target * classes, mean);
    for (size_t t = 0; t < layer.out_tiles; ++t) layer.bits_tile(t)[b] = low_bits(tile_width(classes, t));
  }
  for (size_t c = 0; c < classes; ++c) {
    const float* column = layer.d_tile(c / kTile) + c % kTile;
    float* row = layer.dt_block(block) + c * kTile;
    for (size_t b = first; b < last; ++b) row[b % kTile] = column[b * kTile];
  }
  if (first % kTile == 0) std::fill_n(layer.bits_t_block(block), classes, low_bits(tile_width(batch.rows, block)));
}

}  // namespace fastclf::cpu
