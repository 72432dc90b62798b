// Learning rate and momentum as functions of the step number: the only formulas of them that training uses.
// fastclf/schedules.py says what each kind is, and where it comes from.
#pragma once

#include <cmath>
#include <cstdint>

#include "device/both.h"
#include "device/sgd.h"

namespace fastclf {

enum class ScheduleKind : int64_t { constant = 0, cosine = 1, triangle = 2, one_cycle = 3, range_test = 4, table = 5 };

// A schedule; its kind says which of the fields count. fastclf/ops/rates.py lays it out field by field: all are 8
// bytes.
struct Schedule {
  ScheduleKind kind = ScheduleKind::constant;
  double nb = 1;                      // batches of the first cycle, or of the range test
  double cycle_mult = 1;              // by what each cycle is longer than the one before, >= 1
  double div = 1;                     // triangle, one_cycle: the highest rate by the lowest
  double cut_div = 2;                 // triangle: the length of a cycle by that of its rise
  double pct = 0;                     // one_cycle: percent of the cycle for the final annealing
  double max_mom = -1, min_mom = -1;  // one_cycle: at the lowest and the highest rate; negative: the group's own
  double ratio = 1;                   // range_test: the last rate by the first
  int64_t linear = 0;                 // range_test: 0 or 1
  const double* factors = nullptr;    // table: [n]
  const double* momenta = nullptr;    // table: [n], or null: the group's own
  int64_t n = 0;                      // table: >= 1
};
static_assert(sizeof(Schedule) == 13 * 8);

// What the optimizer knows of a group, apart from its steps.
struct SgdGroup {
  double lr;  // the highest rate
  double momentum, weight_decay;
  double ema;         // what is kept of an average: it gets 1 - ema of the new parameter
  int64_t decoupled;  // 0 or 1: weight decay shrinks the weight instead of adding to the gradient
  Schedule schedule;
};
static_assert(sizeof(SgdGroup) == 5 * 8 + sizeof(Schedule));

// A product of decimals, such as 50 * 1.1, as the whole number that it is of decimals: it is computed as a little more
// or less. fastclf/schedules.py has the same two.
constexpr double kRounding = 1e-12;
FASTCLF_BOTH inline double whole_up(double x) { return std::ceil(x * (1 - kRounding)); }
FASTCLF_BOTH inline double whole_down(double x) { return std::floor(x * (1 + kRounding)); }

struct CyclePosition {
  double batch, length;  // batch within the cycle, and the cycle's length
};

FASTCLF_BOTH inline CyclePosition cycle_position(const Schedule& s, int64_t step) {
  double batch = static_cast<double>(step), length = s.nb;
  if (s.cycle_mult == 1) return {std::fmod(batch, length), length};
  for (double n; batch >= (n = whole_up(length)); length *= s.cycle_mult) batch -= n;
  return {batch, length};
}

// one_cycle: the share of the way up (1 at the top), and the share of the final annealing that is done.
struct Rise {
  double up, tail;
};

FASTCLF_BOTH inline Rise one_cycle_rise(const Schedule& s, int64_t step) {
  const CyclePosition at = cycle_position(s, step);
  const double half = whole_down(at.length * (1 - s.pct / 100) / 2);
  if (at.batch > 2 * half || half == 0) return {0, (at.batch - 2 * half) / (at.length - 2 * half)};
  return {at.batch > half ? 1 - (at.batch - half) / half : at.batch / half, 0};
}

FASTCLF_BOTH inline int64_t table_row(const Schedule& s, int64_t step) { return step < s.n ? step : s.n - 1; }

// The factor on every group's highest rate.
FASTCLF_BOTH inline double schedule_factor(const Schedule& s, int64_t step) {
  constexpr double kPi = 3.14159265358979323846;
  switch (s.kind) {
    case ScheduleKind::constant:
      return 1;
    case ScheduleKind::cosine: {
      if (static_cast<double>(step) < s.nb / 20) return 0.01;
      const CyclePosition at = cycle_position(s, step);
      return (1 + std::cos(kPi * at.batch / at.length)) / 2;
    }
    case ScheduleKind::triangle: {
      const CyclePosition at = cycle_position(s, step);
      const double cut = whole_down(at.length / s.cut_div);
      const double share = at.batch >= cut ? 1 - (at.batch - cut) / (at.length - cut) : at.batch / cut;
      return (1 + share * (s.div - 1)) / s.div;
    }
    case ScheduleKind::one_cycle: {
      const Rise rise = one_cycle_rise(s, step);
      return (1 + rise.up * (s.div - 1)) / s.div * (1 - 0.99 * rise.tail);
    }
    case ScheduleKind::range_test: {
      const double done = static_cast<double>(step) / s.nb;
      return s.linear ? 1 + (s.ratio - 1) * done : std::exp(std::log(s.ratio) * done);
    }
    case ScheduleKind::table:
      return s.factors[table_row(s, step)];
  }
  return 1;
}

// The schedule's own momentum; negative: it has none.
FASTCLF_BOTH inline double schedule_momentum(const Schedule& s, int64_t step) {
  if (s.kind == ScheduleKind::table && s.momenta) return s.momenta[table_row(s, step)];
  if (s.kind != ScheduleKind::one_cycle || s.max_mom < 0) return -1;
  return s.max_mom + one_cycle_rise(s, step).up * (s.min_mom - s.max_mom);
}

// A group's numbers as the coefficients of one step.
FASTCLF_BOTH inline Sgd sgd_at(const SgdGroup& g, int64_t step) {
  const double rate = g.lr * schedule_factor(g.schedule, step), momentum = schedule_momentum(g.schedule, step);
  return {static_cast<float>(rate), static_cast<float>(momentum < 0 ? g.momentum : momentum),
          g.decoupled ? 0.f : static_cast<float>(g.weight_decay),
          g.decoupled ? static_cast<float>(1 - rate * g.weight_decay) : 1.f, 1.f};
}

}  // namespace fastclf
