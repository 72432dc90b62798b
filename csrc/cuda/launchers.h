// The launchers of the GPU's module, and of its emulation. As in api.h: pointers with their [shape], all in device
// memory, and a stream; the one function per operation in fastclf/ops has checked what the comments say.
//
// A training step is a few of these around the products (fastclf/ops/head/cuda.py). What changes from step to step lies
// in device memory too, so that one captured graph serves all steps. Sums are made in a fixed order: the same bits in
// every run. `block_counter` is [ceil(cols / 32)] or [1] and zero between launches: the last block to add to it
// finishes the sums.
#pragma once

#include "api.h"

namespace fastclf::cuda {

// Where a fit is.
struct StepCounter {
  uint32_t step;   // of the fit: rates and masks depend on it
  uint32_t batch;  // of this call: which part of `order`, which loss
};

// A batch [rows, cols]. Row b is src[order[step_counter->batch * stride + b]], or src[b] where order is null.
struct BatchRows {
  const void* src;  // [n, cols] float16 or float32
  DType dtype;
  const int64_t* order;
  const StepCounter* step_counter;
  size_t stride, rows, cols;
};

// BatchNorm's statistics: mean and 1 / sqrt(variance + eps) of the batch, and what it makes of the running ones.
struct Statistics {
  float *mean, *rstd;                 // [cols]
  float *running_mean, *running_var;  // [cols]
  float momentum, eps;
  float* partial;           // [ceil(rows / 32), 2, cols]
  unsigned* block_counter;  // [ceil(cols / 32)]
};

// Element (b, j) of layer `layer` in step step_counter->step is dropped with probability p (device/philox.h).
struct Dropout {
  uint64_t seed;
  uint32_t layer;
  double p;  // 0 <= p < 1
};

// out[b, j] = 0 where the element is dropped, else 1 / (1 - p).
struct DropoutMask : Dropout {
  uint32_t step;
  float* out;  // [rows, cols]
  size_t rows, cols;
};
Status dropout_mask(const DropoutMask& op, void* stream);

// Statistics of a batch of rows, gathered while they are read.
struct BatchMoments : BatchRows, Statistics {};
Status batch_moments(const BatchMoments& op, void* stream);

// z becomes max(z + bias, 0); and its statistics.
struct ReluMoments : Statistics {
  float* z;           // [rows, cols]
  const float* bias;  // [cols]
  size_t rows, cols;
};
Status relu_moments(const ReluMoments& op, void* stream);

// out = keep ? scale * (gamma * (x - mean) * rstd + beta) : 0, the left operand of a product.
struct Normalise : BatchRows, Dropout {
  const float *mean, *rstd, *gamma, *beta;  // [cols]
  void* out;                                // [rows, cols] out_dtype
  DType out_dtype;                          // float32 or bfloat16
};
Status normalise(const Normalise& op, void* stream);

// z becomes the gradient of the batch's loss with respect to z + bias, the logits.
struct LossGradient {
  Loss loss;
  float* z;             // [rows, classes]
  const float* bias;    // [classes]
  const void* targets;  // nll: int64 [n]; bce: float [n, classes]
  const int64_t* order;
  const StepCounter* step_counter;
  size_t stride, rows, classes;
  const float* weight;  // [classes], or null: all ones
  float weight_sum;     // of the weights
  float smoothing;
  float* row_loss;          // [rows], scratch
  float* losses;            // losses[step_counter->batch] is written
  unsigned* block_counter;  // [1]
  uint16_t* copy;           // [rows, classes] bfloat16 of the gradient, or null
};
Status loss_gradient(const LossGradient& op, void* stream);

// out[j] = sum over rows of x[:, j].
struct ColumnSums {
  const float* x;  // [rows, cols]
  size_t rows, cols;
  float* out;               // [cols]
  float* partial;           // [ceil(rows / 32), cols]
  unsigned* block_counter;  // [ceil(cols / 32)]
};
Status column_sums(const ColumnSums& op, void* stream);

// From the gradient of a product's left operand: g = keep ? scale * g : 0, dgamma = sum of g * xhat, dbeta = sum of g.
struct AffineGradient : BatchRows, Dropout {
  float* g;                  // [rows, cols]
  bool write;                // whether g is written back
  const float *mean, *rstd;  // [cols]
  float *dgamma, *dbeta;     // [cols]
  float* partial;            // [ceil(rows / 32), 2, cols]
  unsigned* block_counter;   // [ceil(cols / 32)]
};
Status affine_gradient(const AffineGradient& op, void* stream);

// g, with respect to BatchNorm's affine output, becomes the gradient of what went into the ReLU before; h is what came
// out of it. `frozen`: the statistics do not depend on h.
struct InputGradient {
  float* g;        // [rows, cols]
  const float* h;  // [rows, cols]
  size_t rows, cols;
  const float *mean, *rstd, *gamma, *dgamma, *dbeta;  // [cols]
  bool frozen;
  float* dbias;             // [cols], the sums of g's columns
  uint16_t* copy;           // [rows, cols] bfloat16 of g, or null
  float* partial;           // [ceil(rows / 32), cols]
  unsigned* block_counter;  // [ceil(cols / 32)]
};
Status input_gradient(const InputGradient& op, void* stream);

// A linear layer with the BatchNorm before it folded in, for evaluation.
struct Fold {
  const float *weight, *bias;              // [n_out, n_in], [n_out]
  const float *gamma, *beta, *mean, *var;  // [n_in]
  float eps;
  size_t n_out, n_in;
  float *out_weight, *out_bias;  // [n_out, n_in], [n_out]
};
Status fold(const Fold& op, void* stream);

// z becomes z + bias, or max(z + bias, 0).
struct AddBias {
  float* z;           // [rows, cols]
  const float* bias;  // [cols]
  size_t rows, cols;
  bool relu;
};
Status add_bias(const AddBias& op, void* stream);

// factor = min(1, clip / (norm of all gradients + 1e-6)), as torch.nn.utils.clip_grad_norm_.
struct ClipFactor {
  const SgdTensor* tensors;  // [n_tensors]
  size_t n_tensors;
  double clip;
  double* partial;          // [n_tensors]
  unsigned* block_counter;  // [1]
  float* factor;            // [1]
};
Status clip_factor(const ClipFactor& op, void* stream);

// One step for all tensors of all groups, in one launch: 20 bytes of memory traffic per parameter, 28 where its average
// is kept. Then every group's steps and the step counter are advanced.
struct SgdStep {
  const SgdTensor* tensors;  // [n_tensors], long tensors in parts so that blocks share the work
  size_t n_tensors;
  const SgdGroup* groups;     // [n_groups]
  int64_t* steps;             // [n_groups], taken before this one
  size_t n_groups;            // at most 1024
  const float* scale;         // [1], on every gradient, or null
  StepCounter* step_counter;  // or null
  unsigned* block_counter;    // [1]
};
Status sgd_step(const SgdStep& op, void* stream);

}  // namespace fastclf::cuda
