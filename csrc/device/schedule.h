// Learning rate and momentum as functions of the step number: the twin of fastclf/training/schedule.py, which explains
// the formulas and fills the table.
#pragma once

#include <cmath>
#include <cstdint>

#include "device/both.h"
#include "device/sgd.h"

namespace fastclf {

enum class ScheduleKind : int { constant = 0, sgdr = 1, clr = 2, clr_beta = 3, finder = 4 };

// Schedule.table(): the kind, then this kind's numbers.
struct Schedule {
  const double* table;  // [8]

  FASTCLF_BOTH ScheduleKind kind() const { return static_cast<ScheduleKind>(static_cast<int>(table[0])); }
  FASTCLF_BOTH double nb() const { return table[1]; }
};

struct CyclePosition {
  double batch, length;  // batch within the cycle, and the cycle's length
};

FASTCLF_BOTH inline CyclePosition cycle_position(const Schedule& s, int64_t step) {
  const double mult = s.table[2];
  double batch = static_cast<double>(step), length = s.nb();
  if (mult == 1) return {std::fmod(batch, length), length};
  for (; batch >= length; length *= mult) batch -= std::ceil(length);
  return {batch, length};
}

// 1cycle: the share of the way up (1 at the top), and the share of the final annealing that is done.
struct Rise {
  double up, tail;
};

FASTCLF_BOTH inline Rise clr_beta_rise(const Schedule& s, int64_t step) {
  const CyclePosition at = cycle_position(s, step);
  const double half = std::floor(at.length * (1 - s.table[4] / 100) / 2);
  if (at.batch > 2 * half || half == 0) return {0, (at.batch - 2 * half) / (at.length - 2 * half)};
  return {at.batch > half ? 1 - (at.batch - half) / half : at.batch / half, 0};
}

// The factor on every group's highest rate.
FASTCLF_BOTH inline double schedule_factor(const Schedule& s, int64_t step) {
  constexpr double kPi = 3.14159265358979323846;
  switch (s.kind()) {
    case ScheduleKind::constant:
      return 1;
    case ScheduleKind::sgdr: {
      if (static_cast<double>(step) < s.nb() / 20) return 0.01;
      const CyclePosition at = cycle_position(s, step);
      return (1 + std::cos(kPi * at.batch / at.length)) / 2;
    }
    case ScheduleKind::clr: {
      const CyclePosition at = cycle_position(s, step);
      const double div = s.table[3], cut = std::floor(at.length / s.table[4]);
      const double share = at.batch >= cut ? 1 - (at.batch - cut) / (at.length - cut) : at.batch / cut;
      return (1 + share * (div - 1)) / div;
    }
    case ScheduleKind::clr_beta: {
      const Rise rise = clr_beta_rise(s, step);
      const double div = s.table[3];
      return (1 + rise.up * (div - 1)) / div * (1 - 0.99 * rise.tail);
    }
    case ScheduleKind::finder: {
      const double done = static_cast<double>(step) / s.nb(), ratio = s.table[2];
      return s.table[3] != 0 ? 1 + (ratio - 1) * done : std::exp(std::log(ratio) * done);
    }
  }
  return 1;
}

// The momentum: the schedule's where it has one, else the group's own.
FASTCLF_BOTH inline double schedule_momentum(const Schedule& s, int64_t step, double own) {
  if (s.kind() != ScheduleKind::clr_beta || s.table[5] == 0) return own;
  return s.table[6] + clr_beta_rise(s, step).up * (s.table[7] - s.table[6]);
}

// A group's numbers as the coefficients of one step.
FASTCLF_BOTH inline Sgd sgd_at(const Schedule& schedule, int64_t step, double lr, double momentum, double weight_decay,
                               bool decoupled) {
  const double rate = lr * schedule_factor(schedule, step);
  return {static_cast<float>(rate), static_cast<float>(schedule_momentum(schedule, step, momentum)),
          decoupled ? 0.f : static_cast<float>(weight_decay),
          decoupled ? static_cast<float>(1 - rate * weight_decay) : 1.f, 1.f};
}

}  // namespace fastclf
