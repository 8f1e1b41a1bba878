// How a thread waits for another one a short while.
#pragma once

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
