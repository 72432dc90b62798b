// One pool of threads for the process. A job runs on a team: members share phases of items and meet at barriers.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <utility>

namespace fastclf::cpu {

// Members wait for each other: first spinning, because phases are microseconds apart, then asleep.
class Barrier {
 public:
  explicit Barrier(unsigned members) : members_(members) {}
  // Returns in all members once all have come; `last` runs before, in the member that comes last.
  template <class Last>
  void wait(Last last) {
    const unsigned phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == members_) {
      arrived_.store(0, std::memory_order_relaxed);
      last();
      phase_.store(phase + 1, std::memory_order_release);
      phase_.notify_all();
    } else {
      await_change(phase_, phase);
    }
  }
  // Returns once value != old.
  static void await_change(const std::atomic<unsigned>& value, unsigned old);

 private:
  const unsigned members_;
  alignas(64) std::atomic<unsigned> arrived_{0};
  alignas(64) std::atomic<unsigned> phase_{0};
};

class Team {
 public:
  explicit Team(unsigned size) : size_(size), barrier_(size) {}
  unsigned size() const { return size_; }

  // Runs item(i) for i < n, spread over the members, and returns when all are done. Every member must call it.
  // Who runs an item depends on the moment: results must not.
  template <class Item>
  void for_each(size_t n, Item item) {
    for (size_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n;) item(i);
    barrier_.wait([this] { next_.store(0, std::memory_order_relaxed); });
  }

 private:
  const unsigned size_;
  alignas(64) std::atomic<size_t> next_{0};
  Barrier barrier_;
};

// How many members can have one of `items` to do; at least one.
inline size_t team_size(int threads, size_t items) {
  return std::clamp<size_t>(static_cast<size_t>(std::max(1, threads)), 1, std::max<size_t>(1, items));
}

// What a member of a team does. An exception could end no member without the others, which wait for it: so there are
// none, and whatever must be allocated is there before the team runs.
struct Job {
  const void* body;
  void (*run)(const void* body, Team&, unsigned rank) noexcept;
};

void run_job(int threads, const Job& job);

// Runs body(team, rank) on up to `threads` threads at once, the caller being rank 0; returns when all have returned.
// They are fewer where the system gives no more. Jobs of several callers run one after another. A forked child starts
// its own threads on first use.
template <class Body>
void run_team(int threads, const Body& body) {
  static_assert(noexcept(body(std::declval<Team&>(), 0u)), "a team's body must be noexcept: allocate before run_team");
  run_job(threads, {&body, [](const void* of, Team& team, unsigned rank) noexcept {
                      (*static_cast<const Body*>(of))(team, rank);
                    }});
}

}  // namespace fastclf::cpu
