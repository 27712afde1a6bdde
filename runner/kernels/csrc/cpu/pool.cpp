#include "pool.h"

#include <algorithm>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#endif
#if defined(__x86_64__) || defined(_M_X64)
#include <immintrin.h>
#endif

namespace shale {
namespace {

using Clock = std::chrono::steady_clock;

// How long a worker spins for the next job before it sleeps. The calls of one forward pass follow each other within a
// few microseconds, a sleeping worker answers after about 40: spinning this long keeps workers hot inside a pass and
// lets them sleep between requests.
constexpr auto kSpin = std::chrono::microseconds(80);
// How long the caller spins for a worker that joined. It then sleeps, which frees its core for that worker.
constexpr auto kJoinedSpin = std::chrono::microseconds(50);
constexpr int kPausesPerClockRead = 16;

std::atomic<Pool*> pool_instance{nullptr};
thread_local int current_worker = -1;  // -1: outside of every job

void pause_core() noexcept {
#if defined(__x86_64__) || defined(_M_X64)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Spins until ready() or until the time is over; says whether ready() held.
template <class Ready>
bool spin_until(std::chrono::microseconds limit, Ready&& ready) {
  const auto deadline = Clock::now() + limit;
  do {
    for (int i = 0; i < kPausesPerClockRead; ++i) {
      if (ready()) return true;
      pause_core();
    }
  } while (Clock::now() < deadline);
  return ready();
}

#if defined(__unix__) || defined(__APPLE__)
// Signals belong to Python's main thread: workers are started with all of them blocked.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before_);
  }
  ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;

 private:
  sigset_t before_;
};
#else
struct BlockedSignals {
  ~BlockedSignals() {}
};
#endif

}  // namespace

Pool& Pool::instance() {
  if (Pool* pool = pool_instance.load(std::memory_order_acquire)) return *pool;
  static const bool created = [] {
    pool_instance.store(new Pool(1), std::memory_order_release);
#if defined(__unix__) || defined(__APPLE__)
    pthread_atfork(nullptr, nullptr, &Pool::after_fork_in_child);
#endif
    return true;
  }();
  (void)created;
  return *pool_instance.load(std::memory_order_acquire);
}

// The child has none of the parent's threads and may have copied a locked mutex: the old pool is left behind as it is.
void Pool::after_fork_in_child() noexcept {
  current_worker = -1;
  const Pool* parent = pool_instance.load(std::memory_order_relaxed);
  pool_instance.store(new Pool(parent->size()), std::memory_order_release);
}

void Pool::resize(int size) {
  const std::lock_guard lock(mutex_);
  size = std::clamp(size, 1, kMaxSize);
  if (size == this->size()) return;
  stop_workers();
  size_.store(size, std::memory_order_relaxed);
}

void Pool::run_job(const Job& job) {
  if (job.num_pieces <= 0) return;
  std::atomic<int64_t> next{0};
  if (current_worker >= 0) return job.work(job.body, next, job.num_pieces, current_worker);
  const std::lock_guard lock(mutex_);
  current_worker = 0;
  if (job.num_pieces == 1 || size() == 1) {
    job.work(job.body, next, job.num_pieces, 0);
  } else {
    run_shared(job);
  }
  current_worker = -1;
}

void Pool::run_shared(const Job& job) {
  if (workers_.empty()) start_workers();
  job_ = job;
  next_piece_.store(0, std::memory_order_relaxed);
  const uint64_t epoch = (state_.load(std::memory_order_relaxed) >> kEpochShift) + 1;
  // Sequentially consistent, as is the count of sleepers: either the worker that is about to sleep sees the new job, or
  // this thread sees the sleeper and rings.
  state_.store(epoch << kEpochShift, std::memory_order_seq_cst);
  wake_workers(job.num_pieces - 1);
  job.work(job.body, next_piece_, job.num_pieces, 0);
  if (state_.fetch_or(kClosed, std::memory_order_seq_cst) & kJoinedMask) wait_for_joined();
}

void Pool::start_workers() {
  const BlockedSignals blocked;
  const uint64_t epoch = state_.load(std::memory_order_relaxed) >> kEpochShift;
  for (int worker = 1; worker < size(); ++worker) {
    workers_.emplace_back([this, worker, epoch] { work_until_stopped(worker, epoch); });
#if defined(__linux__)
    pthread_setname_np(workers_.back().native_handle(), "shale-cpu");
#endif
  }
}

void Pool::stop_workers() {
  stopping_.store(true, std::memory_order_seq_cst);
  bell_.fetch_add(1, std::memory_order_seq_cst);
  bell_.notify_all();
  for (std::thread& worker : workers_) worker.join();
  workers_.clear();
  stopping_.store(false, std::memory_order_seq_cst);
}

void Pool::wake_workers(int64_t wanted) {
  const int asleep = num_asleep_.load(std::memory_order_seq_cst);
  if (asleep == 0) return;
  bell_.fetch_add(1, std::memory_order_seq_cst);
  if (wanted >= asleep) return bell_.notify_all();
  for (int64_t i = 0; i < wanted; ++i) bell_.notify_one();
}

void Pool::wait_for_joined() {
  const auto all_left = [this] { return (state_.load(std::memory_order_acquire) & kJoinedMask) == 0; };
  while (!spin_until(kJoinedSpin, all_left)) {
    const uint32_t rung = done_bell_.load(std::memory_order_seq_cst);
    caller_asleep_.store(true, std::memory_order_seq_cst);
    if ((state_.load(std::memory_order_seq_cst) & kJoinedMask) != 0) done_bell_.wait(rung, std::memory_order_seq_cst);
    caller_asleep_.store(false, std::memory_order_relaxed);
  }
}

void Pool::leave_job() {
  state_.fetch_sub(1, std::memory_order_seq_cst);
  if (!caller_asleep_.load(std::memory_order_seq_cst)) return;
  done_bell_.fetch_add(1, std::memory_order_seq_cst);
  done_bell_.notify_one();
}

// Joins the open job, if there is one that this worker has not seen yet.
bool Pool::join_next_job(uint64_t& seen_epoch) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state >> kEpochShift) != seen_epoch) {
    if (state & kClosed) {
      seen_epoch = state >> kEpochShift;
    } else if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
      seen_epoch = state >> kEpochShift;
      return true;
    }
  }
  return false;
}

void Pool::work_until_stopped(int worker, uint64_t seen_epoch) {
  current_worker = worker;
  for (;;) {
    bool joined = false;
    const auto woken = [&] {
      joined = join_next_job(seen_epoch);
      return joined || stopping_.load(std::memory_order_relaxed);
    };
    while (!spin_until(kSpin, woken)) {
      const uint32_t rung = bell_.load(std::memory_order_seq_cst);
      num_asleep_.fetch_add(1, std::memory_order_seq_cst);
      const bool nothing_new = (state_.load(std::memory_order_seq_cst) >> kEpochShift) == seen_epoch;
      if (nothing_new && !stopping_.load(std::memory_order_seq_cst)) bell_.wait(rung, std::memory_order_seq_cst);
      num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
    }
    if (!joined) return;
    job_.work(job_.body, next_piece_, job_.num_pieces, worker);
    leave_job();
  }
}

}  // namespace shale
