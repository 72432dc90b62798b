// The coefficients of one step of SGD with momentum: g' = scale*g + decay*w, m = momentum*m + g', w = shrink*w -
// rate*m.
#pragma once

namespace fastclf {

struct Sgd {
  float rate, momentum, decay, shrink, scale;
};

}  // namespace fastclf
