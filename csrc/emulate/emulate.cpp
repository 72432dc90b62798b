#include "emulate/emulate.h"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "emulate/fiber.h"
#include "emulate/sanitizers.h"

namespace fastclf::emulate {

namespace {

constexpr unsigned kWarp = 32, kMostThreads = 4096;

[[noreturn]] void fail(const char* what, unsigned long long a = 0, unsigned long long b = 0) {
  std::fputs("emulated kernel: ", stderr);
  std::fprintf(stderr, what, a, b);  // NOLINT
  std::fputc('\n', stderr);
  std::abort();
}

struct Barrier {
  const char* name = "";
  unsigned expected = 0, arrived = 0, phase = 0;
  char order[2] = {};  // places for ThreadSanitizer, by turns: nobody is two phases ahead of anybody
};

struct Warp {
  Barrier barrier;
  uint64_t slot[2][kWarp];  // by turns, as above
};

struct SharedArray {
  const void* place;
  std::unique_ptr<std::byte[]> bytes;
};

std::unique_ptr<std::byte[]> fresh_bytes(size_t n) {
  const sanitizers::Unseen unseen;
  std::unique_ptr<std::byte[]> bytes(new std::byte[n]);
  std::memset(bytes.get(), 0xff, n);
  return bytes;
}

struct Block {
  explicit Block(const Launch& launch) : warps(launch.threads / kWarp), dynamic(fresh_bytes(launch.dynamic_bytes)) {
    barrier = {.name = "__syncthreads", .expected = launch.threads};
    for (Warp& warp : warps) warp.barrier = {.name = "a shuffle", .expected = kWarp};
  }
  ~Block() {
    const sanitizers::Unseen unseen;
    arrays.clear();
    dynamic.reset();
  }

  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<std::byte[]> dynamic;
  std::vector<SharedArray> arrays;
};

// One CUDA thread. Workers are kept for the next block.
struct Worker {
  static void work();

  Fiber fiber{&Worker::work};
  Position position = {};
  Block* block = nullptr;
  const Barrier* waits_at = nullptr;
  unsigned phase = 0;  // of the barrier where it waits
  bool finished = false;

  bool can_run() const { return !finished && !(waits_at && waits_at->phase == phase); }
};

// The launch that runs now, and where its host code waits for it.
struct Running {
  const std::function<void()>* body;
  Fiber host;
  Barrier grid;
  char begin = 0, end = 0;  // places for ThreadSanitizer
};

Running* running = nullptr;
Worker* worker = nullptr;  // whose fiber runs

void Worker::work() {
  while (true) {
    sanitizers::acquire(&running->begin);
    (*running->body)();
    sanitizers::release(&running->end);
    worker->finished = true;
    worker->fiber.resume(running->host);
  }
}

void wait(Barrier& barrier, bool orders_memory) {
  const unsigned phase = barrier.phase;
  if (orders_memory) sanitizers::release(&barrier.order[phase % 2]);
  if (++barrier.arrived == barrier.expected) {
    barrier.arrived = 0;
    ++barrier.phase;
  } else {
    worker->waits_at = &barrier;
    worker->phase = phase;
    worker->fiber.resume(running->host);
    worker->waits_at = nullptr;
  }
  if (orders_memory) sanitizers::acquire(&barrier.order[phase % 2]);
}

[[noreturn]] void report_deadlock(const std::vector<Worker*>& team) {
  for (const Worker* w : team) {
    if (w->finished) continue;
    std::fprintf(stderr, "emulated kernel: thread %u of block %u waits at %s for threads that never come\n",
                 w->position.thread.x, w->position.block.x, w->waits_at->name);
    break;
  }
  size_t finished = 0;
  for (const Worker* w : team) finished += w->finished;
  fail("%llu of %llu threads have returned. A collective stands in a divergent branch.", finished, team.size());
}

// Runs the workers until all have finished.
void schedule(const std::vector<Worker*>& team) {
  for (size_t finished = 0; finished < team.size();) {
    bool any = false;
    for (Worker* w : team) {
      if (!w->can_run()) continue;
      worker = w;
      current = &w->position;
      running->host.resume(w->fiber);
      finished += w->finished;
      any = true;
    }
    if (!any) report_deadlock(team);
  }
}

std::vector<std::unique_ptr<Worker>>& pool(size_t at_least) {
  static std::vector<std::unique_ptr<Worker>> workers;
  while (workers.size() < at_least) workers.push_back(std::make_unique<Worker>());
  return workers;
}

uint3 block_index(const dim3& grid, unsigned long long i) {
  const auto x = static_cast<unsigned>(i % grid.x), y = static_cast<unsigned>(i / grid.x % grid.y);
  return {x, y, static_cast<unsigned>(i / grid.x / grid.y)};
}

void run_blocks(const Launch& launch, const std::vector<unsigned long long>& numbers, bool falling) {
  auto& workers = pool(numbers.size() * launch.threads);
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<Worker*> team;
  for (const unsigned long long number : numbers) {
    blocks.push_back(std::make_unique<Block>(launch));
    for (unsigned t = 0; t < launch.threads; ++t) {
      Worker* w = workers[team.size()].get();
      w->position = {{t, 0, 0}, block_index(launch.grid, number), dim3(launch.threads), launch.grid};
      w->block = blocks.back().get();
      w->waits_at = nullptr;
      w->finished = false;
      team.push_back(w);
    }
  }
  if (falling) team = {team.rbegin(), team.rend()};
  schedule(team);
}

}  // namespace

const Position* current = nullptr;

void run(const Launch& launch, const std::function<void()>& body) {
  static std::mutex one_at_a_time;
  static bool falling = true;
  const std::lock_guard lock(one_at_a_time);
  const unsigned long long blocks = 1ull * launch.grid.x * launch.grid.y * launch.grid.z;
  if (launch.threads == 0 || launch.threads % kWarp != 0 || launch.threads > 1024) {
    fail("a block must have 32 to 1024 threads in whole warps, got %llu", launch.threads);
  }
  if (blocks == 0) fail("the grid is empty");
  const unsigned long long at_once = launch.cooperative ? blocks : 1;
  if (at_once * launch.threads > kMostThreads) {
    fail("a cooperative grid may have %llu threads here, got %llu", kMostThreads, at_once * launch.threads);
  }
  falling = !falling;
  Running now = {.body = &body, .host = {}, .grid = {.name = "the grid's barrier"}};
  now.grid.expected = launch.cooperative ? static_cast<unsigned>(at_once) * launch.threads : 0;
  running = &now;
  sanitizers::release(&now.begin);
  for (unsigned long long first = 0; first < blocks; first += at_once) {
    std::vector<unsigned long long> numbers;
    for (unsigned long long i = first; i < first + at_once; ++i) numbers.push_back(falling ? blocks - 1 - i : i);
    run_blocks(launch, numbers, falling);
  }
  sanitizers::acquire(&now.end);
  running = nullptr;
}

void block_barrier() { wait(worker->block->barrier, true); }

void grid_barrier() {
  if (running->grid.expected == 0) fail("a barrier of the whole grid needs a cooperative launch");
  wait(running->grid, true);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned from) {
  if (mask != 0xffffffffu) fail("collectives must name the full mask, got %llx", mask);
  const unsigned thread = worker->position.thread.x;
  Warp& warp = worker->block->warps[thread / kWarp];
  uint64_t* slot = warp.slot[warp.barrier.phase % 2];
  slot[thread % kWarp] = value;
  wait(warp.barrier, false);
  return slot[from % kWarp];
}

void* shared_array(const void* place, size_t bytes) {
  for (const SharedArray& array : worker->block->arrays) {
    if (array.place == place) return array.bytes.get();
  }
  const sanitizers::Unseen unseen;
  worker->block->arrays.push_back({place, fresh_bytes(bytes)});
  return worker->block->arrays.back().bytes.get();
}

void* dynamic_shared() { return worker->block->dynamic.get(); }

void check_aligned(const void* address, size_t size) {
  if (reinterpret_cast<uintptr_t>(address) % size != 0) fail("an access of %llu bytes is not aligned", size);
}

float half_to_float(uint16_t half) {
  const uint32_t sign = uint32_t{half} >> 15 << 31, exponent = (uint32_t{half} >> 10) & 31, fraction = half & 1023u;
  if (exponent == 31) return bits_as<float>(sign | 0x7f800000u | fraction << 13);
  if (exponent > 0) return bits_as<float>(sign | (exponent + 112) << 23 | fraction << 13);
  const float tiny = static_cast<float>(fraction) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

}  // namespace fastclf::emulate
