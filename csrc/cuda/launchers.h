// The launchers of the GPU's module, and of its emulation. As in api.h: pointers with their [shape], all in device
// memory, and a stream; the one function per operation in fastclf/ops has checked what the comments say.
//
// A training step is a few of these around the products (fastclf/ops/head/cuda.py). What changes from step to step lies
// in device memory too, so that one captured graph serves all steps. Sums are made in a fixed order: the same bits in
// every run. `block_counter` is [1] and zero between launches: the last block to add to it finishes the sums.
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

// out = keep ? scale * (gamma * xhat + beta) : 0, the left operand of a product; xhat = (x - mean) * rstd with mean and
// 1 / sqrt(variance + eps) of the batch, which change the running ones; with the running ones where `frozen`.
struct Normalise : BatchRows, Dropout {
  const float* bias;  // [cols], or null; with it src is float32, without order, and becomes max(src + bias, 0) first
  float *running_mean, *running_var;  // [cols]
  float momentum, eps;
  bool frozen;
  float *mean, *rstd;         // [cols], written
  const float *gamma, *beta;  // [cols]
  void* out;                  // [rows, cols] out_dtype
  DType out_dtype;            // float32 or bfloat16
  void* factors;  // [rows, factor_cols] out_dtype, or null: keep * xhat, and keep behind it where factor_cols is 2 cols
  size_t factor_cols;
};
Status normalise(const Normalise& op, void* stream);

// z becomes the gradient of the batch's loss with respect to z + bias, the logits; z is made first, as the product of
// rows and matrix, where these are given.
struct LossGradient {
  Loss loss;
  const void* left;    // [rows, inner] left_dtype, or null
  DType left_dtype;    // float32 or bfloat16
  const float* right;  // [classes, inner]
  size_t inner;
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
  float* out;  // [cols]
};
Status column_sums(const ColumnSums& op, void* stream);

// Most classes that HiddenGradient multiplies itself.
constexpr size_t kMostClasses = 64;

// From a layer's left operand back through dropout, BatchNorm and the ReLU before. g, the gradient of the operand, lies
// in d, or is the product of the gradient of the logits and the last layer's weight; that layer's gradients are then
// made as well. d becomes the gradient of what went into the ReLU; h is what came out of it.
struct HiddenGradient : Dropout {
  const float* logits;            // [rows, classes] gradient, or null: the next five are not looked at
  size_t classes;                 // at most kMostClasses
  const float* weight;            // [classes, cols]
  const void* operand;            // [rows, cols] operand_dtype
  DType operand_dtype;            // float32 or bfloat16
  float *dweight, *dweight_bias;  // [classes, cols], [classes]
  const StepCounter* step_counter;
  float* d;        // [rows, cols]
  const float* h;  // [rows, cols]
  size_t rows, cols;
  const float *mean, *rstd, *gamma;  // [cols]
  bool frozen;                       // the statistics do not depend on h
  float *dgamma, *dbeta;             // [cols]
  float* dbias;                      // [cols], the sums of d's columns
  uint16_t* copy;                    // [rows, cols] bfloat16 of d, or null
};
Status hidden_gradient(const HiddenGradient& op, void* stream);

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

// Most rows whose products FirstStep makes itself.
constexpr size_t kMostProductRows = 128;

// The first layer, and the products of the gradient of what it gives with the factors that `normalise` has made. Its
// gradients are dweight = kept_scale (gamma A + beta M), dgamma = kept_scale sum of weight A and dbeta = kept_scale sum
// of weight M with A = d' (keep xhat) and M = d' keep: that of its input is not needed for them.
struct FirstLayer {
  const float* products;         // [n_out, 2 n_in] A | M, or [n_out, n_in] A
  const float* sums;             // [n_out], the sums of d's columns: all of M where nothing is dropped; or null
  float *weight, *gamma, *beta;  // [n_out, n_in], [n_in]
  size_t n_out, n_in;
  float kept_scale;  // 1 / (1 - p)
};

struct FirstGradient : FirstLayer {
  float *dweight, *dgamma, *dbeta;  // [n_out, n_in], [n_in], written
};
Status first_gradient(const FirstGradient& op, void* stream);

// The first layer's parameters are updated by these gradients, which are not written, as tensors of group 0; all others
// as by SgdStep. The products are made here where they are null.
struct FirstStep : FirstLayer, SgdStep {
  const float* d;       // [rows, n_out]; only looked at without products, and so are the next three
  const void* factors;  // [rows, 2 n_in] factors_dtype, or [rows, n_in] with sums
  DType factors_dtype;  // float32 or bfloat16
  size_t rows;          // at most kMostProductRows
  float *weight_velocity, *gamma_velocity, *beta_velocity;
};
Status first_step(const FirstStep& op, void* stream);

// Makes crops, an image per block; images, too, are in device memory.
struct CropResizeOnDevice : CropResize {
  // [n, scratch_width], aligned to 16 bytes, in multiples of 4: where there is a matrix 4 for each pixel of the resized
  // crop; 2 for each of its rows and columns; and for each axis of n values n * ceil(2 max(1, source / n)) weights
  float* scratch;
  size_t scratch_width;
};
Status crop_resize(const CropResizeOnDevice& op, void* stream);

}  // namespace fastclf::cuda
