// A group's numbers as the coefficients of one step.
#pragma once

#include "cpu/kernels.h"
#include "device/schedule.h"

namespace fastclf {

inline Sgd sgd_at(const Schedule& schedule, int64_t step, double lr, double momentum, double weight_decay,
                  bool decoupled) {
  const double rate = lr * schedule_factor(schedule, step);
  return {.rate = static_cast<float>(rate),
          .momentum = static_cast<float>(schedule_momentum(schedule, step, momentum)),
          .decay = decoupled ? 0.f : static_cast<float>(weight_decay),
          .shrink = decoupled ? static_cast<float>(1 - rate * weight_decay) : 1.f,
          .scale = 1.f};
}

}  // namespace fastclf
