// The GPU's module, and its emulation.
#include "bind.h"
#include "cuda/launchers.h"

namespace py = pybind11;
using namespace fastclf;
using namespace fastclf::cuda;

namespace {

#define ROWS(Op)                                                                                                   \
  FIELD(Op, src), FIELD(Op, dtype), FIELD(Op, order), FIELD(Op, step_counter), FIELD(Op, stride), FIELD(Op, rows), \
      FIELD(Op, cols)
#define STATISTICS(Op)                                                                                    \
  FIELD(Op, mean), FIELD(Op, rstd), FIELD(Op, running_mean), FIELD(Op, running_var), FIELD(Op, momentum), \
      FIELD(Op, eps), FIELD(Op, partial), FIELD(Op, block_counter)
#define DROPOUT(Op) FIELD(Op, seed), FIELD(Op, layer), FIELD(Op, p)

void bind_forward(py::module_& m) {
  bind(m, "dropout_mask", dropout_mask, DROPOUT(DropoutMask), FIELD(DropoutMask, step), FIELD(DropoutMask, out),
       FIELD(DropoutMask, rows), FIELD(DropoutMask, cols));
  bind(m, "batch_moments", batch_moments, ROWS(BatchMoments), STATISTICS(BatchMoments));
  bind(m, "relu_moments", relu_moments, STATISTICS(ReluMoments), FIELD(ReluMoments, z), FIELD(ReluMoments, bias),
       FIELD(ReluMoments, rows), FIELD(ReluMoments, cols));
  bind(m, "normalise", normalise, ROWS(Normalise), DROPOUT(Normalise), FIELD(Normalise, mean), FIELD(Normalise, rstd),
       FIELD(Normalise, gamma), FIELD(Normalise, beta), FIELD(Normalise, out), FIELD(Normalise, out_dtype));
  bind(m, "fold", fold, FIELD(Fold, weight), FIELD(Fold, bias), FIELD(Fold, gamma), FIELD(Fold, beta),
       FIELD(Fold, mean), FIELD(Fold, var), FIELD(Fold, eps), FIELD(Fold, n_out), FIELD(Fold, n_in),
       FIELD(Fold, out_weight), FIELD(Fold, out_bias));
  bind(m, "add_bias", add_bias, FIELD(AddBias, z), FIELD(AddBias, bias), FIELD(AddBias, rows), FIELD(AddBias, cols),
       FIELD(AddBias, relu));
}

void bind_backward(py::module_& m) {
  bind(m, "loss_gradient", loss_gradient, FIELD(LossGradient, loss), FIELD(LossGradient, z), FIELD(LossGradient, bias),
       FIELD(LossGradient, targets), FIELD(LossGradient, order), FIELD(LossGradient, step_counter),
       FIELD(LossGradient, stride), FIELD(LossGradient, rows), FIELD(LossGradient, classes),
       FIELD(LossGradient, weight), FIELD(LossGradient, weight_sum), FIELD(LossGradient, smoothing),
       FIELD(LossGradient, row_loss), FIELD(LossGradient, losses), FIELD(LossGradient, block_counter),
       FIELD(LossGradient, copy));
  bind(m, "column_sums", column_sums, FIELD(ColumnSums, x), FIELD(ColumnSums, rows), FIELD(ColumnSums, cols),
       FIELD(ColumnSums, out), FIELD(ColumnSums, partial), FIELD(ColumnSums, block_counter));
  bind(m, "affine_gradient", affine_gradient, ROWS(AffineGradient), DROPOUT(AffineGradient), FIELD(AffineGradient, g),
       FIELD(AffineGradient, write), FIELD(AffineGradient, mean), FIELD(AffineGradient, rstd),
       FIELD(AffineGradient, dgamma), FIELD(AffineGradient, dbeta), FIELD(AffineGradient, partial),
       FIELD(AffineGradient, block_counter));
  bind(m, "input_gradient", input_gradient, FIELD(InputGradient, g), FIELD(InputGradient, h),
       FIELD(InputGradient, rows), FIELD(InputGradient, cols), FIELD(InputGradient, mean), FIELD(InputGradient, rstd),
       FIELD(InputGradient, gamma), FIELD(InputGradient, dgamma), FIELD(InputGradient, dbeta),
       FIELD(InputGradient, frozen), FIELD(InputGradient, dbias), FIELD(InputGradient, copy),
       FIELD(InputGradient, partial), FIELD(InputGradient, block_counter));
}

void bind_update(py::module_& m) {
  bind(m, "clip_factor", clip_factor, FIELD(ClipFactor, tensors), FIELD(ClipFactor, n_tensors), FIELD(ClipFactor, clip),
       FIELD(ClipFactor, partial), FIELD(ClipFactor, block_counter), FIELD(ClipFactor, factor));
  bind(m, "sgd_step", sgd_step, FIELD(SgdStep, tensors), FIELD(SgdStep, n_tensors), FIELD(SgdStep, groups),
       FIELD(SgdStep, steps), FIELD(SgdStep, n_groups), FIELD(SgdStep, scale), FIELD(SgdStep, step_counter),
       FIELD(SgdStep, block_counter));
}

}  // namespace

PYBIND11_MODULE(FASTCLF_MODULE, m) {
  bind_forward(m);
  bind_backward(m);
  bind_update(m);
}
