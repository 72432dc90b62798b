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
#define DROPOUT(Op) FIELD(Op, seed), FIELD(Op, layer), FIELD(Op, p)
#define FIRST_LAYER(Op)                                                                                         \
  FIELD(Op, products), FIELD(Op, sums), FIELD(Op, weight), FIELD(Op, gamma), FIELD(Op, beta), FIELD(Op, n_out), \
      FIELD(Op, n_in), FIELD(Op, kept_scale)
#define SGD_STEP(Op)                                                                                  \
  FIELD(Op, tensors), FIELD(Op, n_tensors), FIELD(Op, groups), FIELD(Op, steps), FIELD(Op, n_groups), \
      FIELD(Op, scale), FIELD(Op, step_counter), FIELD(Op, block_counter)

void bind_forward(py::module_& m) {
  bind(m, "dropout_mask", dropout_mask, DROPOUT(DropoutMask), FIELD(DropoutMask, step), FIELD(DropoutMask, out),
       FIELD(DropoutMask, rows), FIELD(DropoutMask, cols));
  bind(m, "normalise", normalise, ROWS(Normalise), DROPOUT(Normalise), FIELD(Normalise, bias),
       FIELD(Normalise, running_mean), FIELD(Normalise, running_var), FIELD(Normalise, momentum), FIELD(Normalise, eps),
       FIELD(Normalise, frozen), FIELD(Normalise, mean), FIELD(Normalise, rstd), FIELD(Normalise, gamma),
       FIELD(Normalise, beta), FIELD(Normalise, out), FIELD(Normalise, out_dtype), FIELD(Normalise, factors),
       FIELD(Normalise, factor_cols));
  bind(m, "fold", fold, FIELD(Fold, weight), FIELD(Fold, bias), FIELD(Fold, gamma), FIELD(Fold, beta),
       FIELD(Fold, mean), FIELD(Fold, var), FIELD(Fold, eps), FIELD(Fold, n_out), FIELD(Fold, n_in),
       FIELD(Fold, out_weight), FIELD(Fold, out_bias));
  bind(m, "add_bias", add_bias, FIELD(AddBias, z), FIELD(AddBias, bias), FIELD(AddBias, rows), FIELD(AddBias, cols),
       FIELD(AddBias, relu));
}

void bind_backward(py::module_& m) {
  bind(m, "loss_gradient", loss_gradient, FIELD(LossGradient, loss), FIELD(LossGradient, left),
       FIELD(LossGradient, left_dtype), FIELD(LossGradient, right), FIELD(LossGradient, inner), FIELD(LossGradient, z),
       FIELD(LossGradient, bias), FIELD(LossGradient, targets), FIELD(LossGradient, order),
       FIELD(LossGradient, step_counter), FIELD(LossGradient, stride), FIELD(LossGradient, rows),
       FIELD(LossGradient, classes), FIELD(LossGradient, weight), FIELD(LossGradient, weight_sum),
       FIELD(LossGradient, smoothing), FIELD(LossGradient, row_loss), FIELD(LossGradient, losses),
       FIELD(LossGradient, block_counter), FIELD(LossGradient, copy));
  bind(m, "column_sums", column_sums, FIELD(ColumnSums, x), FIELD(ColumnSums, rows), FIELD(ColumnSums, cols),
       FIELD(ColumnSums, out));
  bind(m, "hidden_gradient", hidden_gradient, DROPOUT(HiddenGradient), FIELD(HiddenGradient, logits),
       FIELD(HiddenGradient, classes), FIELD(HiddenGradient, weight), FIELD(HiddenGradient, operand),
       FIELD(HiddenGradient, operand_dtype), FIELD(HiddenGradient, dweight), FIELD(HiddenGradient, dweight_bias),
       FIELD(HiddenGradient, step_counter), FIELD(HiddenGradient, d), FIELD(HiddenGradient, h),
       FIELD(HiddenGradient, rows), FIELD(HiddenGradient, cols), FIELD(HiddenGradient, mean),
       FIELD(HiddenGradient, rstd), FIELD(HiddenGradient, gamma), FIELD(HiddenGradient, frozen),
       FIELD(HiddenGradient, dgamma), FIELD(HiddenGradient, dbeta), FIELD(HiddenGradient, dbias),
       FIELD(HiddenGradient, copy));
}

void bind_update(py::module_& m) {
  bind(m, "clip_factor", clip_factor, FIELD(ClipFactor, tensors), FIELD(ClipFactor, n_tensors), FIELD(ClipFactor, clip),
       FIELD(ClipFactor, partial), FIELD(ClipFactor, block_counter), FIELD(ClipFactor, factor));
  bind(m, "sgd_step", sgd_step, SGD_STEP(SgdStep));
  bind(m, "first_gradient", first_gradient, FIRST_LAYER(FirstGradient), FIELD(FirstGradient, dweight),
       FIELD(FirstGradient, dgamma), FIELD(FirstGradient, dbeta));
  bind(m, "first_step", first_step, FIRST_LAYER(FirstStep), SGD_STEP(FirstStep), FIELD(FirstStep, d),
       FIELD(FirstStep, factors), FIELD(FirstStep, factors_dtype), FIELD(FirstStep, rows),
       FIELD(FirstStep, weight_velocity), FIELD(FirstStep, gamma_velocity), FIELD(FirstStep, beta_velocity));
}

void bind_images(py::module_& m) {
  using Op = CropResizeOnDevice;
  bind(m, "crop_resize", crop_resize, FIELD(Op, src), FIELD(Op, shape), FIELD(Op, bytes), FIELD(Op, crop),
       FIELD(Op, size), FIELD(Op, matrix), FIELD(Op, pixel_ops), FIELD(Op, numbers), FIELD(Op, n), FIELD(Op, n_ops),
       FIELD(Op, width), FIELD(Op, sz), FIELD(Op, top), FIELD(Op, mean), FIELD(Op, std), FIELD(Op, out),
       FIELD(Op, scratch), FIELD(Op, scratch_width));
}

}  // namespace

PYBIND11_MODULE(FASTCLF_MODULE, m) {
  bind_forward(m);
  bind_backward(m);
  bind_update(m);
  bind_images(m);
}
