#include "cpu/pool.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <new>
#include <system_error>
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
  void run(unsigned threads, const Job& job) {
    const std::lock_guard lock(busy_);
    while (workers_ + 1 < threads && add_worker()) ++workers_;
    Team team(std::min(threads, workers_ + 1));
    team_ = &team;
    job_ = &job;
    running_.store(workers_, std::memory_order_relaxed);
    generation_.fetch_add(1, std::memory_order_release);
    generation_.notify_all();
    job.run(job.body, team, 0);
    for (unsigned left; (left = running_.load(std::memory_order_acquire)) != 0;) Barrier::await_change(running_, left);
  }

 private:
  // False where the system has no thread or no memory for one: fewer members do the same work.
  bool add_worker() {
    try {
      std::thread([this, rank = workers_ + 1, seen = generation_.load()] { work(rank, seen); }).detach();
      return true;
    } catch (const std::system_error&) {
      return false;
    } catch (const std::bad_alloc&) {
      return false;
    }
  }

  void work(unsigned rank, unsigned seen) noexcept {
    for (;; ++seen) {
      Barrier::await_change(generation_, seen);
      if (rank < team_->size()) job_->run(job_->body, *team_, rank);
      if (running_.fetch_sub(1, std::memory_order_acq_rel) == 1) running_.notify_all();
    }
  }

  std::mutex busy_;
  unsigned workers_ = 0;
  const Job* job_ = nullptr;
  Team* team_ = nullptr;
  alignas(64) std::atomic<unsigned> generation_{0};
  alignas(64) std::atomic<unsigned> running_{0};
};

Pool* pool = nullptr;

Pool& the_pool() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new Pool;
    // Only the calling thread lives on in a forked child: it gets an empty pool, in the place of the old one.
    pthread_atfork(nullptr, nullptr, [] { new (pool) Pool; });
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

void run_job(int threads, const Job& job) {
  if (threads <= 1) {
    Team team(1);
    job.run(job.body, team, 0);
  } else {
    the_pool().run(static_cast<unsigned>(threads), job);
  }
}

}  // namespace fastclf::cpu
