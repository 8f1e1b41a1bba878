#include "team.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <chrono>
#include <climits>

#include "wait.h"

namespace phx {

Team::Team(int size, bool patient) : size_(size), spin_ns_(patient ? PATIENT_NS : IMPATIENT_NS) {
    for (int thread = 1; thread < size; ++thread) threads_.emplace_back(&Team::serve, this, thread);
}

Team::~Team() {
    ending_ = true;
    announce(job_, idle_);
    for (std::thread& thread : threads_) thread.join();
}

void Team::run(const std::function<void(int)>& work) {
    work_ = &work;
    next_.store(0, std::memory_order_relaxed);
    if (size_ > 1) announce(job_, idle_);
    work(0);
    barrier();
}

void Team::barrier(bool apart) {
    if (size_ == 1) {
        next_.store(0, std::memory_order_relaxed);
        return;
    }
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
        arrived_.store(0, std::memory_order_relaxed);
        next_.store(0, std::memory_order_relaxed);
        announce(phase_, resting_);
    } else {
        await(phase_, phase, resting_, apart);
    }
}

void Team::serve(int thread) {
    uint32_t seen = 0;
    while (true) {
        await(job_, seen, idle_, true);
        ++seen;
        if (ending_) return;
        (*work_)(thread);
        barrier();
    }
}

void Team::await(std::atomic<uint32_t>& word, uint32_t old, std::atomic<int>& sleepers, bool apart) {
    const auto changed = [&] { return word.load(std::memory_order_acquire) != old; };
    const long patience = crowd_.patience(spin_ns_);
    if (spin_until(changed, patience)) return;
    if (!apart) crowd_.missed(patience);
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    while (word.load(std::memory_order_seq_cst) == old) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    }
    sleepers.fetch_sub(1, std::memory_order_relaxed);
}

void Team::announce(std::atomic<uint32_t>& word, std::atomic<int>& sleepers) {
    word.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers.load(std::memory_order_seq_cst) > 0) {
        syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
    }
}

}  // namespace phx

extern "C" {

phx::Team* phx_team_new(int threads, int patient) { return new phx::Team(threads, patient); }
void phx_team_free(phx::Team* team) { delete team; }

}  // extern "C"
