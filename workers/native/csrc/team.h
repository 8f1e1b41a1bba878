// The threads of one rank. They run a step together, all of them through the same code, and meet at barriers.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

#include "wait.h"

namespace phx {

class Team {
  public:
    // `patient` threads have a core of their own and may spin for a while before they sleep.
    Team(int size, bool patient);
    ~Team();

    int size() const { return size_; }

    // Runs work(thread) on all threads; returns when all have ended.
    void run(const std::function<void(int)>& work);

    // Waits for all threads; everything written before is seen after. Resets the counter that `claim` takes from. Where
    // one of them waits for other processes meanwhile, `apart`, a long time tells nothing of how busy the cores are.
    void barrier(bool apart = false);

    // The first of the next `count` pieces of the work since the last barrier.
    long claim(long count) { return size_ == 1 ? take(count) : next_.fetch_add(count, std::memory_order_relaxed); }

  private:
    long take(long count) {
        const long first = next_.load(std::memory_order_relaxed);
        next_.store(first + count, std::memory_order_relaxed);
        return first;
    }
    void serve(int thread);
    void await(std::atomic<uint32_t>& word, uint32_t old, std::atomic<int>& sleepers, bool apart);
    void announce(std::atomic<uint32_t>& word, std::atomic<int>& sleepers);

    const int size_;
    const long spin_ns_;
    Crowd crowd_;
    std::vector<std::thread> threads_;
    const std::function<void(int)>* work_ = nullptr;
    bool ending_ = false;
    alignas(64) std::atomic<uint32_t> job_{0};
    std::atomic<int> idle_{0};
    alignas(64) std::atomic<uint32_t> phase_{0};
    std::atomic<int> resting_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<long> next_{0};
};

}  // namespace phx
