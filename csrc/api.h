// Every launcher of the native modules: plain pointers with their [shape], sizes and a stream.
//
// No torch and no pybind11 below this line. Callers (bindings.cpp, the C++ test driver) guarantee what the
// comments say: the checks of dtype, shape, contiguity and range live in one Python function per operation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastclf {

// What a launcher returns: no message means that it worked. Messages are static strings.
struct [[nodiscard]] Status {
  const char* error = nullptr;
};

enum class DType : int { float16 = 0, float32 = 1, bfloat16 = 2 };

// out[r, :] = float32(src[index[r], :]).
struct GatherRows {
  const void* src;  // [n, width] dtype, row-major
  DType dtype;
  const int64_t* index;  // [rows], each 0 <= index < n
  float* out;            // [rows, width]
  size_t rows, width;
};
Status gather_rows(const GatherRows& op, int threads, void* stream);

// out[b, j] = 0 with probability p, else 1 / (1 - p), from the counter generator (device/philox.h).
struct DropoutMask {
  uint64_t seed;
  uint32_t step, layer;
  double p;    // 0 <= p < 1
  float* out;  // [rows, cols]
  size_t rows, cols;
};
Status dropout_mask(const DropoutMask& op, int threads, void* stream);

// What is done to the values of a crop, in order (fastclf.ops.crop_resize.PixelOp), each with its numbers.
enum class PixelOp : int64_t { brightness_contrast = 0 };  // b, c: clip((x - mean) * c + mean + b * top, 0, top)

// Crops of images as a model takes them: the seen part resized, turned, changed by pixel operations and normalised.
struct DrawWindows {
  const uint64_t* src;   // [n] addresses of pictures [height, width, 3], uint8 or float
  const int64_t* shape;  // [n, 2] height and width, each >= 1
  bool bytes;            // uint8
  const float* part;     // [n, 4] top, left, bottom, right of what is seen, in the picture's own pixels
  const int64_t* size;   // [n, 2] rows and columns that it is resized to, each >= 1; [sz, sz] where there is no matrix
  const float* matrix;   // [n, 2, 3] from window to resized part, over (x, y); null: they are the same
  const int64_t* pixel_ops;  // [n_ops] PixelOp
  const float* numbers;      // [n, n_ops, width] that each takes, zeros behind them
  size_t n, n_ops, width, sz;
  float top;  // full white
  float mean[3], std[3];
  float* out;  // [n, 3, sz, sz]
};
Status draw_windows(const DrawWindows& op, int threads);

// One block of a head: BatchNorm over n_in columns, dropout, a linear layer, and ReLU unless it is the last.
struct HeadLayer {
  size_t n_in, n_out;
  double p;                           // dropout, 0 <= p < 1
  float eps, bn_momentum;             // BatchNorm's
  float *weight, *bias;               // [n_out, n_in], [n_out]
  float *gamma, *beta;                // [n_in]
  float *running_mean, *running_var;  // [n_in]
};

enum class Loss : int { nll = 0, bce = 1 };

// A head and the rows it learns from. Its tensors are updated in place; the momentum lives in the engine.
struct HeadSpec {
  const HeadLayer* layers;  // [n_layers], n_out of each is n_in of the next
  size_t n_layers;
  size_t max_batch;
  const void* rows;  // [n, layers[0].n_in] dtype
  DType dtype;
  Loss loss;
  const void* targets;        // nll: int64 [n], 0 <= class < C; bce: float [n, C]
  const float* class_weight;  // [C]; all ones where the loss has none
  float smoothing;
  double lr, momentum, weight_decay;  // lr: the highest rate; the schedule's factor multiplies it
  bool decoupled;                     // weight decay shrinks the weight instead of adding to the gradient
  double clip;                        // highest norm of the gradient of all parameters; 0: none
  const double* schedule;             // [8], device/schedule.h
  uint64_t seed;                      // of the dropout masks
};

class HeadEngine;
HeadEngine* head_create(const HeadSpec& spec);
void head_destroy(HeadEngine* engine);

// The momentum of all parameters, out of the engine or (`load`) into it. tensors: per layer those of weight
// [n_out, n_in], bias [n_out], gamma [n_in] and beta [n_in].
void head_momenta(HeadEngine* engine, float* const* tensors, bool load);

// Batch i is order[i*batch .. (i+1)*batch), the last one may be smaller; its step number is first_step + i.
struct HeadTrain {
  const int64_t* order;  // [rows], each 0 <= row < n
  size_t rows, batch;    // 2 <= batch <= max_batch, and no batch of one row
  uint32_t first_step;
  bool frozen_bn;  // BatchNorm normalises with its running statistics, and keeps them
  float* losses;   // [ceil(rows / batch)]
};
Status head_train(HeadEngine* engine, const HeadTrain& op, int threads);

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

// A tensor of an SGDR step, or a part of one: p, g and m in the same order of memory.
struct SgdrTensor {
  float* param;       // [n]
  const float* grad;  // [n]
  float* velocity;    // [n]
  float* average;     // [n], a running average of the parameter, or null
  uint64_t n, group;
};

struct SgdrGroup {
  double lr;                                 // the highest rate
  double momentum, weight_decay, decoupled;  // decoupled: 0 or 1
  double step;                               // steps taken before this one
  double schedule[8];                        // device/schedule.h
  double ema;                                // what is kept of an average: it gets 1 - ema of the new parameter
};

// SGD with momentum for all tensors, each group's rate and momentum computed from its step number.
struct SgdrStep {
  const SgdrTensor* tensors;  // [n_tensors]
  size_t n_tensors;
  const SgdrGroup* groups;  // [n_groups], tensors[i].group < n_groups
  size_t n_groups;
};
Status sgdr_step(const SgdrStep& op, int threads);

// factor and momentum [n] of the steps first .. first + n of a schedule [8]; `own` is the group's momentum.
void schedule_values(const double* schedule, int64_t first, size_t n, double own, double* factor, double* momentum);

// The instruction set whose vector code runs: baseline, avx2 or avx512. use_isa() chooses another for the process.
const char* isa();
Status use_isa(const char* name);

}  // namespace fastclf
