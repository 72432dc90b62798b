// The head engine: any number of (BatchNorm, dropout, linear, ReLU) blocks trained by SGD, in tiles (cpu/tile.h).
//
// A step, for one block with input x [B, D] and output [B, H]:
//   operand = scale * keep * (gamma * xhat + beta)       per tile of D, with its batch statistics     normalise_tile
//   z = operand W' + b, ReLU                             per tile of H, then the next block's operand  hidden_tile
//   G = d W, dgamma = sum G xhat, dbeta = sum G, d of the block below                  per tile of D   backward_tile
//   dW = d' operand, and the update of W while its gradient is in registers            per tile of D   backward_tile
// All of a tile is done by one thread in a fixed order, so results do not depend on the number of threads; threads meet
// only between these lines. The first tile of the next batch is prepared where the last gradient of this one was made.
//
// Heads that train on the same batches with the same masks take the step in turn, and x, its statistics, xhat and the
// mask of the first block are made once for all (`run_together`): the same values by the same code, so each is what it
// is alone.
#pragma once

#include <vector>

#include "cpu/launchers.h"
#include "cpu/pool.h"
#include "cpu/tile.h"
#include "cpu/vector_code.h"

namespace fastclf::cpu {

// A vector of parameters, its home in the caller's tensor.
struct Vector {
  Vector(float* at, size_t size, float padding = 0);
  void fetch() const;
  void write_back() const;

  float* home;  // [n]
  size_t n;
  Buffer<float> value, velocity, gradient;  // [n], padded to whole tiles
};

struct Layer {
  Layer(const HeadLayer& spec, size_t max_batch, bool last, bool clips);

  HeadLayer spec;
  size_t in_tiles, out_tiles, in_pad, out_pad;  // pads: whole tiles
  Vector bias, gamma, beta, running_mean, running_var;
  Buffer<float> mean, variance, rstd;  // [in_pad], of the batch
  // The weight twice: [in tile][out_pad][64], and transposed: [out tile][in_pad][64].
  Buffer<float> w, wt;
  // Its gradient is a product with two sparse operands; it is written as sums over the rows of one of them, chosen by
  // the zeros of the other. By output: the zeros that ReLU made in the output's gradient, and w is updated. By input:
  // the zeros that dropout made in the operand, and wt is updated; for a wide last layer, whose gradient has no zeros.
  bool by_input;
  Buffer<float> velocity;  // in blocks like w, each transposed where wt is updated
  Buffer<float> gradient;  // the same; only where the norm must be known before the update

  // Of the batch; `capacity` is the batch in whole tiles.
  size_t capacity;
  Buffer<float> xhat, operand;    // [in tile][capacity][64]; the first block's are made by hold_input
  Buffer<uint64_t> keep, active;  // [in tile][capacity]: not dropped; made by a positive input of the ReLU before
  const Layer* lead = nullptr;  // a first block with the same input: its xhat, keep and space for the operand are used
  Buffer<float> d, dt;          // gradient of the output: [out tile][capacity][64], [row block][out_pad][64]
  Buffer<uint64_t> bits, bits_t;  // where it is not zero: [out tile][capacity], [row block][out_pad]

  float* w_tile(size_t t) const { return w.get() + t * out_pad * kTile; }
  float* velocity_tile(size_t t) const { return velocity.get() + t * out_pad * kTile; }
  float* gradient_tile(size_t t) const { return gradient.get() + t * out_pad * kTile; }
  float* w_block(size_t out, size_t in) const { return w_tile(in) + out * kTile * kTile; }
  float* wt_block(size_t out, size_t in) const { return wt.get() + (out * in_pad + in * kTile) * kTile; }
  const Layer& input() const { return lead ? *lead : *this; }
  float* xhat_tile(size_t t) const { return input().xhat.get() + t * capacity * kTile; }
  float* operand_tile(size_t t) const { return input().operand.get() + t * capacity * kTile; }
  uint64_t* keep_tile(size_t t) const { return input().keep.get() + t * capacity; }
  uint64_t* active_tile(size_t t) const { return active.get() + t * capacity; }
  float* d_tile(size_t t) const { return d.get() + t * capacity * kTile; }
  float* dt_block(size_t rows) const { return dt.get() + rows * out_pad * kTile; }
  uint64_t* bits_tile(size_t t) const { return bits.get() + t * capacity; }
  uint64_t* bits_t_block(size_t rows) const { return bits_t.get() + rows * out_pad; }

  void hold_input();
  // The running statistics of tile t follow those of a batch.
  void follow_statistics(const float* batch_mean, const float* batch_variance, size_t rows, size_t t) const;
  // Rows of the weight's tile t from the caller's tensor, and back.
  void fetch_tile(size_t t) const;
  void write_back_tile(size_t t) const;
  void transpose_tile(size_t t, const VectorCode& code) const;
  // The velocity [n_out, n_in] to a place of the caller's, or from there.
  void exchange_velocity(float* at, bool load) const;
  // The block that an update has changed, into the other copy of the weight.
  void copy_block(size_t out, size_t in, const VectorCode& code) const;
};

// One batch; every member of the team holds the same values.
struct Batch {
  const int64_t* targets;  // [rows], which
  const int64_t* sources;  // [rows], which rows it is gathered from
  size_t rows;
  const int64_t* ahead;  // sources of the batch after it
  size_t ahead_rows;
  uint32_t step;
  bool frozen_bn;
  Sgd sgd;
};

class HeadEngine {
 public:
  explicit HeadEngine(const HeadCreate& op);
  // All of op.engines, of which this is the first.
  void train(const HeadTrain& op, int threads);
  void exchange_momenta(float* const* tensors, bool load) const;

 private:
  struct Scratch {          // one per thread
    Buffer<float> g;        // [capacity, 64]
    Buffer<float> partial;  // [largest out_pad, 64]
    Buffer<float> operand_t = Buffer<float>(kTile * kTile);
    Buffer<uint64_t> keep_t = Buffer<uint64_t>(kTile);
  };

  Batch batch_at(const HeadTrain& op, size_t i) const;
  void run(Team& team, const Scratch& scratch, const HeadTrain& op);
  void run_together(Team& team, const Scratch& scratch, const HeadTrain& op);
  // From the operand of the first block to the updated weights, and to that of `next` unless it has no rows.
  void step(Team& team, const Scratch& scratch, const Batch& batch, const Batch& next, float* loss);
  void exchange(Team& team, bool fetch);

  // forward: head_forward.cpp
  void input_tile(const Batch& batch, size_t t) const;
  void normalise_tile(const Layer& layer, uint32_t number, const Batch& batch, size_t t) const;
  void operand_tile(const Batch& batch, size_t t) const;
  void hidden_tile(size_t number, const Batch& batch, size_t t) const;
  void logits(Team& team, const Batch& batch) const;
  void loss_rows(const Batch& batch, size_t first, size_t last) const;
  float mean_factor(const Batch& batch) const;

  // backward: head_backward.cpp
  void backward_tile(size_t number, const Batch& batch, size_t t, const Scratch& scratch) const;
  void affine_gradient(const Layer& layer, const Batch& batch, size_t t, float* g) const;
  void input_gradient(const Layer& layer, const Layer& below, const Batch& batch, size_t t, float* g) const;
  void weight_gradient(size_t number, const Batch& batch, size_t t, const Scratch& scratch) const;
  void output_bias_gradient(const Batch& batch) const;
  void step_vector(const Vector& v, size_t t, const Batch& batch) const;
  void clipped_update(Team& team, const Batch& batch) const;
  double gradient_norm() const;

  HeadCreate op_;
  const SgdGroup group_;
  const VectorCode& code_;
  std::vector<Layer> layers_;
  std::vector<float> class_weight_;  // [C], padded with zeros
  float weight_sum_ = 0;
  Buffer<float> row_loss_;               // [capacity]
  std::vector<Buffer<double>> squares_;  // per layer [in tile]: of the weight's gradient
};

}  // namespace fastclf::cpu
