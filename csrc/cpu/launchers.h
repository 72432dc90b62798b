// Every launcher of the processor's module, and what it takes. Results do not depend on the number of threads.
#pragma once

#include "api.h"

namespace fastclf::cpu {

// out[r, :] = float32(src[index[r], :]).
struct GatherRows {
  const void* src;  // [n, width] float16 or float32, row-major
  DType dtype;
  const int64_t* index;  // [rows], each 0 <= index < n
  float* out;            // [rows, width]
  size_t rows, width;
};
Status gather_rows(const GatherRows& op, int threads);

// out[b, j] = 0 with probability p, else 1 / (1 - p), from the counter generator (device/philox.h).
struct DropoutMask {
  uint64_t seed;
  uint32_t step, layer;
  double p;    // 0 <= p < 1
  float* out;  // [rows, cols]
  size_t rows, cols;
};
Status dropout_mask(const DropoutMask& op, int threads);

// Makes crops, an image per thread.
Status crop_resize(const CropResize& op, int threads);

// One block of a head: BatchNorm over n_in columns, dropout, a linear layer, and ReLU unless it is the last.
// fastclf/ops/head/cpu.py lays it out field by field.
struct HeadLayer {
  size_t n_in, n_out;
  double p;                           // dropout, 0 <= p < 1
  float eps, bn_momentum;             // BatchNorm's
  float *weight, *bias;               // [n_out, n_in], [n_out]
  float *gamma, *beta;                // [n_in]
  float *running_mean, *running_var;  // [n_in]
};

// A head and the rows it learns from. Its tensors are updated in place; the momentum lives in the engine.
struct HeadCreate {
  const HeadLayer* layers;  // [n_layers], n_out of each is n_in of the next
  size_t n_layers;
  size_t max_batch;
  const void* rows;  // [n, layers[0].n_in] dtype
  DType dtype;
  Loss loss;
  const void* targets;        // nll: int64, 0 <= class < C; bce: float [., C]
  const float* class_weight;  // [C]; all ones where the loss has none
  float smoothing;
  const SgdGroup* group;  // of all parameters
  double clip;            // highest norm of the gradient of all parameters; 0: none
  uint64_t seed;          // of the dropout masks
};

class HeadEngine;
HeadEngine* head_create(const HeadCreate& op);
void head_destroy(HeadEngine* engine);

// The momentum of all parameters, out of the engine or (`load`) into it. tensors: per layer those of weight
// [n_out, n_in], bias [n_out], gamma [n_in] and beta [n_in].
void head_momenta(HeadEngine* engine, float* const* tensors, bool load);

// Batch i is order[i*batch .. (i+1)*batch) and sources at the same places, the last one may be smaller; its step number
// is first_step + i. Several engines train on the same batches, each as it does alone, bit for bit. They have the same
// rows, dtype, max_batch and seed, the same n_in, p and eps of their first layer, and BatchNorm that is not frozen; all
// else is their own.
struct HeadTrain {
  HeadEngine* const* engines;  // [n_engines]
  size_t n_engines;
  const int64_t* order;    // [rows], which targets
  const int64_t* sources;  // [rows], which rows of HeadCreate::rows: where the same row has several targets, not order
  size_t rows, batch;      // batch <= max_batch; without frozen_bn no batch of one row, which has no variance
  uint32_t first_step;
  bool frozen_bn;  // BatchNorm normalises with its running statistics, and keeps them
  float* losses;   // [n_engines, ceil(rows / batch)]
};
Status head_train(const HeadTrain& op, int threads);

// Logits of rows, with the running statistics folded into the weights, and no dropout.
struct HeadPredict {
  const HeadLayer* layers;
  size_t n_layers;
  const void* rows;  // [n, layers[0].n_in] dtype
  DType dtype;
  const int64_t* index;  // [count]
  size_t count;
  float* out;  // [count, C]
};
Status head_predict(const HeadPredict& op, int threads);

// SGD with momentum for all tensors, each group's rate and momentum computed from its step number.
struct SgdStep {
  const SgdTensor* tensors;  // [n_tensors]
  size_t n_tensors;
  const SgdGroup* groups;  // [n_groups], tensors[i].group < n_groups
  const int64_t* steps;    // [n_groups], taken before this one
  size_t n_groups;
};
Status sgd_step(const SgdStep& op, int threads);

// The instruction set whose vector code runs: baseline, avx2 or avx512. use_isa() chooses another for the process.
const char* isa();
Status use_isa(const char* name);

}  // namespace fastclf::cpu
