// How a thread waits for another one a short while, and how long that is.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace phx {

inline void relax() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline long now_ns() {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// A thread whose core another program took is back within a millisecond or two. To sleep meanwhile costs more than that
// time: a thread that wakes up late makes the others wait and sleep in their turn, at one meeting after the other. One
// that is not back by then shares its core with a program that is busy all the time, and has a turn of some milliseconds
// at every meeting; for a while all sleep at once, as whoever has slept is let in before such a program.
constexpr long PATIENT_NS = 2'000'000, IMPATIENT_NS = 2'000, CROWDED_NS = 500'000'000;

// Whether another program keeps a core of those who meet busy; also in memory that processes share. Zeros are a valid
// beginning.
class Crowd {
  public:
    // How long to look before sleeping, for whoever looks for `spin_ns` where there is none.
    long patience(long spin_ns) const { return here() ? std::min(spin_ns, IMPATIENT_NS) : spin_ns; }

    // Says that one of them looked for `looked_ns` in vain, for others who had no more to do than itself.
    void missed(long looked_ns) {
        if (looked_ns >= PATIENT_NS) until_.store(now_ns() + CROWDED_NS, std::memory_order_relaxed);
    }

  private:
    bool here() const {
        const long left = until_.load(std::memory_order_relaxed) - now_ns();
        return left > 0 && left <= CROWDED_NS;  // more is another clock's, of a container with its own
    }

    std::atomic<long> until_{0};
};

// Whether `done` came true within about `limit_ns`.
template <class Done> bool spin_until(Done done, long limit_ns) {
    for (int i = 0; i < 64; ++i) {
        if (done()) return true;
        relax();
    }
    const long end = now_ns() + limit_ns;
    do {
        for (int i = 0; i < 16; ++i) {
            if (done()) return true;
            relax();
        }
    } while (now_ns() < end);
    return done();
}

}  // namespace phx
