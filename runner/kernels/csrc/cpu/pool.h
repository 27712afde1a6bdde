// Thread pool whose jobs are joined, never awaited.
//
// A job is a number of pieces behind one atomic counter, so any number of threads can run it. A worker *joins* a job
// that is open; the caller works too, closes the job when no piece is left and waits only for the workers that joined.
// A worker that the operating system does not run (busy machine) therefore delays nobody: a pool that waits for every
// worker fell to 2.4 GB/s of weights with one foreign busy process where this one keeps 18-27.
//
// Workers start at the first job that needs them, spin for kSpin after a job, then sleep until the next: an idle
// process uses no CPU time. Calls from several threads queue behind a mutex; a run inside a piece runs inline. After
// fork() the child has a fresh pool of the same size.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace shale {

class Pool {
 public:
  static constexpr int kMaxSize = 1024;

  static Pool& instance();

  // Threads that take part in a job, the caller among them.
  int size() const noexcept { return size_.load(std::memory_order_relaxed); }

  // Waits for a running job, then ends the workers; new ones start with the next job. Clamped to 1 ... kMaxSize. Must
  // not be called from inside a piece.
  void resize(int size);

  // Runs f(piece, worker) once for every piece in [0, num_pieces), in any order, and returns when all are done.
  // `worker` is in [0, size()) and no two threads inside f have the same: it may index scratch memory. f must not throw
  // (that ends the process) and must not take the GIL.
  template <class F>
  void run(int64_t num_pieces, F&& f) {
    using Body = std::remove_reference_t<F>;
    const auto work = [](const void* body, std::atomic<int64_t>& next, int64_t count, int worker) noexcept {
      auto& call = *static_cast<Body*>(const_cast<void*>(body));
      for (int64_t piece; (piece = next.fetch_add(1, std::memory_order_relaxed)) < count;) call(piece, worker);
    };
    run_job({work, &f, num_pieces});
  }

 private:
  struct Job {
    void (*work)(const void* body, std::atomic<int64_t>& next, int64_t count, int worker) noexcept = nullptr;
    const void* body = nullptr;
    int64_t num_pieces = 0;
  };

  explicit Pool(int size) : size_(size) {}
  ~Pool() = delete;  // lives until the process ends: workers may outlast static destructors
  static void after_fork_in_child() noexcept;

  void run_job(const Job& job);
  void run_shared(const Job& job);
  void start_workers();
  void stop_workers();
  void wake_workers(int64_t wanted);
  void wait_for_joined();
  void work_until_stopped(int worker, uint64_t seen_epoch);
  bool join_next_job(uint64_t& seen_epoch);
  void leave_job();

  std::mutex mutex_;  // one job, or one resize, at a time
  std::atomic<int> size_;
  std::vector<std::thread> workers_;
  Job job_;

  // epoch << 16 | closed << 15 | joined workers. A cache line of its own, as has every word that threads fight over.
  alignas(64) std::atomic<uint64_t> state_{kClosed};
  alignas(64) std::atomic<int64_t> next_piece_{0};
  alignas(64) std::atomic<uint32_t> bell_{0};  // workers sleep on it
  std::atomic<int> num_asleep_{0};
  std::atomic<bool> stopping_{false};
  alignas(64) std::atomic<uint32_t> done_bell_{0};  // the caller sleeps on it when a worker that joined takes long
  std::atomic<bool> caller_asleep_{false};

  static constexpr uint64_t kClosed = uint64_t{1} << 15;
  static constexpr uint64_t kJoinedMask = kClosed - 1;
  static constexpr int kEpochShift = 16;
};

}  // namespace shale
