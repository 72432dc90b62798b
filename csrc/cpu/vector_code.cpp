// Compiled once per instruction set (CMakeLists.txt), each time in the namespace FASTCLF_ISA.
#include "cpu/vector_code.h"

#include "cpu/image.h"
#include "cpu/loss.h"
#include "cpu/norm.h"
#include "cpu/philox.h"
#include "cpu/product.h"
#include "cpu/vec.h"

#define FASTCLF_TEXT(x) #x
#define FASTCLF_NAME(x) FASTCLF_TEXT(x)

namespace fastclf::cpu::FASTCLF_ISA {

namespace {

void widen(const uint16_t* src, float* dst, size_t n) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(dst + i, load_half(src + i));
  for (; i < n; ++i) dst[i] = widen_one(src[i]);
}

}  // namespace

extern const VectorCode table;
const VectorCode table = {
    .name = FASTCLF_NAME(FASTCLF_ISA),
    .widen = widen,
    .keep_bits = keep_bits,
    .product = product,
    .product_update = product_update,
    .update = update,
    .follow = follow,
    .transpose = transpose,
    .sum_of_squares = sum_of_squares,
    .gather_tile = gather_tile,
    .moments = moments,
    .normalise = normalise,
    .bias_relu = bias_relu,
    .add_bias = add_bias,
    .column_sums = column_sums,
    .affine_gradient = affine_gradient,
    .input_gradient = input_gradient,
    .nll_row = nll_row,
    .bce_row = bce_row,
    .lanes = kLanes,
    .blend_down = blend_down,
    .strip_to_planes = strip_to_planes,
    .strip_to_pixels = strip_to_pixels,
    .warp_row = warp_row,
    .to_planes = to_planes,
    .brightness_contrast = brightness_contrast,
};

}  // namespace fastclf::cpu::FASTCLF_ISA
