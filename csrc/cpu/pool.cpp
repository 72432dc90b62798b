#include "cpu/pool.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastclf::cpu {

namespace {

constexpr int kSpins = 4000;  // tens of microseconds: more than the wait for a neighbour, less than a time slice

void relax() {
#if defined(__x86_64__)
  _mm_pause();
#endif
}

// Threads that sleep until a job comes. Never destroyed: its threads are detached and end with the process.
class Pool {
 public:
  void run(unsigned threads, const std::function<void(Team&, unsigned)>& job) {
    const std::lock_guard lock(busy_);
    for (; workers_ + 1 < threads; ++workers_) {
      std::thread([this, rank = workers_ + 1, seen = generation_.load()] { work(rank, seen); }).detach();
    }
    Team team(threads);
    team_ = &team;
    job_ = &job;
    running_.store(workers_, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    job(team, 0);
    for (unsigned left; (left = running_.load(std::memory_order_acquire)) != 0;) Barrier::await_change(running_, left);
  }

 private:
  void work(unsigned rank, unsigned seen) {
    for (;; ++seen) {
      Barrier::await_change(generation_, seen);
      if (rank < team_->size()) (*job_)(*team_, rank);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
    }
  }

  std::mutex busy_;
  unsigned workers_ = 0;
  const std::function<void(Team&, unsigned)>* job_ = nullptr;
  Team* team_ = nullptr;
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<unsigned> running_{0};
};

Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    // Only the calling thread lives on in a forked child: it gets an empty pool, and leaves the old one alone.
    pthread_atfork(nullptr, nullptr, [] { pool = new Pool; });
  });
  return *pool;
}

}  // namespace

void Barrier::await_change(const std::atomic<unsigned>& value, unsigned old) {
  for (int spin = 0; spin < kSpins; ++spin) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  value.wait(old, std::memory_order_acquire);
}

void run_team(int threads, const std::function<void(Team&, unsigned)>& job) {
  if (threads <= 1) {
    Team team(1);
    job(team, 0);
  } else {
    the_pool().run(static_cast<unsigned>(threads), job);
  }
}

}  // namespace fastclf::cpu
