// What is fetched from memory while something else is computed.
#pragma once

#include "dot.h"

namespace phx {

constexpr long AHEAD = 4096;  // bytes between what is used and what is fetched

// Memory to fetch while a tile is computed: with every step over a cache line of weights, so many lines of it.
struct Ahead {
    const char* at;
    long lines;  // 0 to TILE_PANELS; with none, at is where something lies already: to ask takes longer than to fetch
    PHX_INLINE void fetch(long step) const {
        prefetch(at + step * lines * LINE);
        if (TILE_PANELS > 1 && lines > 1) prefetch(at + (step * lines + 1) * LINE);
    }
};

}  // namespace phx
