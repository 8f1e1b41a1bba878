// What is fetched from memory while something else is computed.
#pragma once

#include "simd.h"

namespace phx {

constexpr long AHEAD = 4096;  // bytes between what is used and what is fetched

// Memory to fetch while a tile is computed: with every step over a cache line of weights, so many lines of it.
struct Ahead {
    const char* at = nullptr;
    long lines = 0;  // 0 to 2
    PHX_INLINE void fetch(long step) const {
        if (lines > 0) prefetch(at + step * lines * LINE);
        if (lines > 1) prefetch(at + (step * lines + 1) * LINE);
    }
};

}  // namespace phx
