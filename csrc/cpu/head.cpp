#include "cpu/head.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "cpu/flush.h"

namespace fastclf::cpu {

namespace {

constexpr float kNoLogit = -1e30f;  // the bias of columns that only fill the last tile: they vanish in every loss

}  // namespace

Vector::Vector(float* at, size_t size, float padding)
    : home(at), n(size), value(tiles(n) * kTile), velocity(tiles(n) * kTile), gradient(tiles(n) * kTile) {
  std::fill(value.get() + n, value.get() + tiles(n) * kTile, padding);
}

void Vector::fetch() const { std::copy_n(home, n, value.get()); }
void Vector::write_back() const { std::copy_n(value.get(), n, home); }

Layer::Layer(const HeadLayer& of, size_t max_batch, bool last, bool clips)
    : spec(of),
      in_tiles(tiles(of.n_in)),
      out_tiles(tiles(of.n_out)),
      in_pad(in_tiles * kTile),
      out_pad(out_tiles * kTile),
      bias(of.bias, of.n_out, last ? kNoLogit : 0),
      gamma(of.gamma, of.n_in),
      beta(of.beta, of.n_in),
      running_mean(of.running_mean, of.n_in),
      running_var(of.running_var, of.n_in),
      mean(in_pad),
      variance(in_pad),
      rstd(in_pad),
      w(in_pad * out_pad),
      wt(in_pad * out_pad),
      by_input(last && of.p > 0 && of.n_out > kTile),
      velocity(in_pad * out_pad),
      gradient(clips ? in_pad * out_pad : 0),
      capacity(tiles(max_batch) * kTile),
      active(in_tiles * capacity),
      d(out_pad * capacity),
      dt(out_pad * capacity),
      bits(out_tiles * capacity),
      bits_t(tiles(max_batch) * out_pad) {}

void Layer::hold_input() {
  if (keep.get()) return;  // made last: where memory ends before, the next call makes them all
  xhat = Buffer<float>(in_pad * capacity);
  operand = Buffer<float>(in_pad * capacity);
  keep = Buffer<uint64_t>(in_tiles * capacity);
}

void Layer::follow_statistics(const float* batch_mean, const float* batch_variance, size_t rows, size_t t) const {
  float *mu = running_mean.value.get() + t * kTile, *var = running_var.value.get() + t * kTile;
  const float share = spec.bn_momentum, n = static_cast<float>(rows), unbiased = n / (n - 1);
  for (size_t j = 0; j < kTile; ++j) {
    mu[j] += share * (batch_mean[j] - mu[j]);
    var[j] += share * (batch_variance[j] * unbiased - var[j]);
  }
}

void Layer::fetch_tile(size_t t) const {
  const size_t width = tile_width(spec.n_in, t);
  for (size_t h = 0; h < spec.n_out; ++h) {
    std::copy_n(spec.weight + h * spec.n_in + t * kTile, width, w_tile(t) + h * kTile);
  }
}

void Layer::write_back_tile(size_t t) const {
  const size_t width = tile_width(spec.n_in, t);
  for (size_t h = 0; h < spec.n_out; ++h) {
    std::copy_n(w_tile(t) + h * kTile, width, spec.weight + h * spec.n_in + t * kTile);
  }
}

void Layer::exchange_velocity(float* at, bool load) const {
  for (size_t h = 0; h < spec.n_out; ++h) {
    for (size_t i = 0; i < spec.n_in; ++i, ++at) {
      const size_t row = h % kTile, column = i % kTile;
      float& v = velocity_tile(
          i / kTile)[h / kTile * kTile * kTile + (by_input ? column * kTile + row : row * kTile + column)];
      load ? v = *at : * at = v;
    }
  }
}

void Layer::transpose_tile(size_t t, const VectorCode& code) const {
  for (size_t o = 0; o < out_tiles; ++o) code.transpose(w_block(o, t), wt_block(o, t));
}

void Layer::copy_block(size_t out, size_t in, const VectorCode& code) const {
  by_input ? code.transpose(wt_block(out, in), w_block(out, in)) : code.transpose(w_block(out, in), wt_block(out, in));
}

HeadEngine::HeadEngine(const HeadCreate& op) : op_(op), group_(*op.group), code_(vector_code()) {
  for (size_t i = 0; i < op.n_layers; ++i) {
    layers_.emplace_back(op.layers[i], op.max_batch, i + 1 == op.n_layers, op.clip > 0);
    squares_.emplace_back(layers_.back().in_tiles);
    if (i > 0) layers_.back().hold_input();
  }
  op_.layers = nullptr, op_.group = nullptr;  // they need not outlive this call
  const Layer& last = layers_.back();
  class_weight_.assign(last.out_pad, 0.f);
  std::copy_n(op.class_weight, last.spec.n_out, class_weight_.begin());
  weight_sum_ = std::accumulate(class_weight_.begin(), class_weight_.end(), 0.f);
  row_loss_ = Buffer<float>(last.capacity);
}

// Parameters between the caller's tensors and the engine's tiles.
void HeadEngine::exchange(Team& team, bool fetch) {
  for (const Layer& layer : layers_) {
    team.for_each(layer.in_tiles, [&](size_t t) {
      if (fetch) {
        layer.fetch_tile(t);
        layer.transpose_tile(t, code_);
      } else {
        layer.write_back_tile(t);
      }
      if (t > 0) return;
      for (const Vector* v : {&layer.bias, &layer.gamma, &layer.beta, &layer.running_mean, &layer.running_var}) {
        fetch ? v->fetch() : v->write_back();
      }
    });
  }
}

Batch HeadEngine::batch_at(const HeadTrain& op, size_t i) const {
  const size_t first = i * op.batch, next = std::min(op.rows, first + op.batch);
  const auto step = static_cast<uint32_t>(op.first_step + i);
  const Sgd sgd = sgd_at(group_, step);
  return {op.order + first,
          op.sources + first,
          next - first,
          op.sources + next,
          std::min(op.batch, op.rows - next),
          step,
          op.frozen_bn,
          sgd};
}

void HeadEngine::step(Team& team, const Scratch& scratch, const Batch& batch, const Batch& next, float* loss) {
  const size_t blocks = layers_.size();
  for (size_t n = 0; n + 1 < blocks; ++n) {
    team.for_each(layers_[n].out_tiles, [&](size_t t) { hidden_tile(n, batch, t); });
  }
  logits(team, batch);
  for (size_t n = blocks; n-- > 0;) {
    team.for_each(layers_[n].in_tiles, [&](size_t t) {
      if (n + 1 == blocks && t == 0) {
        *loss = static_cast<float>(std::accumulate(row_loss_.get(), row_loss_.get() + batch.rows, 0.0));
        output_bias_gradient(batch);
      }
      backward_tile(n, batch, t, scratch);
      if (n == 0 && next.rows > 0 && op_.clip <= 0) input_tile(next, t);
    });
  }
  if (op_.clip > 0) {
    clipped_update(team, batch);
    if (next.rows > 0) team.for_each(layers_[0].in_tiles, [&](size_t t) { input_tile(next, t); });
  }
}

void HeadEngine::run(Team& team, const Scratch& scratch, const HeadTrain& op) {
  const size_t steps = (op.rows + op.batch - 1) / op.batch;
  exchange(team, true);
  Batch batch = batch_at(op, 0);
  team.for_each(layers_[0].in_tiles, [&](size_t t) { input_tile(batch, t); });
  for (size_t i = 0; i < steps; ++i) {
    const Batch next = i + 1 < steps ? batch_at(op, i + 1) : Batch{};
    step(team, scratch, batch, next, op.losses + i);
    batch = next;
  }
  exchange(team, false);
}

// The input of a step is made by the first head, and stays until the last has used it.
void HeadEngine::run_together(Team& team, const Scratch& scratch, const HeadTrain& op) {
  const size_t steps = (op.rows + op.batch - 1) / op.batch;
  for (size_t e = 0; e < op.n_engines; ++e) op.engines[e]->exchange(team, true);
  for (size_t i = 0; i < steps; ++i) {
    for (size_t e = 0; e < op.n_engines; ++e) {
      HeadEngine& head = *op.engines[e];
      const Batch batch = head.batch_at(op, i);
      team.for_each(layers_[0].in_tiles,
                    [&](size_t t) { e == 0 ? head.input_tile(batch, t) : head.operand_tile(batch, t); });
      head.step(team, scratch, batch, {}, op.losses + e * steps + i);
    }
  }
  for (size_t e = 0; e < op.n_engines; ++e) op.engines[e]->exchange(team, false);
}

void HeadEngine::train(const HeadTrain& op, int threads) {
  if (op.rows == 0) return;
  size_t widest = 0;
  for (size_t e = 0; e < op.n_engines; ++e) {
    for (const Layer& layer : op.engines[e]->layers_) widest = std::max(widest, layer.out_pad);
    op.engines[e]->layers_[0].lead = e > 0 ? &layers_[0] : nullptr;
  }
  layers_[0].hold_input();
  std::vector<Scratch> scratch(static_cast<size_t>(std::max(1, threads)));
  for (Scratch& s : scratch) {
    s.g = Buffer<float>(layers_[0].capacity * kTile);
    s.partial = Buffer<float>(widest * kTile);
  }
  run_team(threads, [&](Team& team, unsigned rank) noexcept {
    const FlushTiny flush;
    op.n_engines > 1 ? run_together(team, scratch[rank], op) : run(team, scratch[rank], op);
  });
}

void HeadEngine::exchange_momenta(float* const* tensors, bool load) const {
  for (const Layer& layer : layers_) {
    layer.exchange_velocity(*tensors++, load);
    for (const Vector* v : {&layer.bias, &layer.gamma, &layer.beta}) {
      load ? std::copy_n(*tensors, v->n, v->velocity.get()) : std::copy_n(v->velocity.get(), v->n, *tensors);
      ++tensors;
    }
  }
}

HeadEngine* head_create(const HeadCreate& op) { return new HeadEngine(op); }
void head_destroy(HeadEngine* engine) { delete engine; }

void head_momenta(HeadEngine* engine, float* const* tensors, bool load) { engine->exchange_momenta(tensors, load); }

Status head_train(const HeadTrain& op, int threads) {
  op.engines[0]->train(op, threads);
  return {};
}

}  // namespace fastclf::cpu
