// A pass's products in matrix registers. Tiles of the cache are theirs as they are: keys are [depth / 2][16 tokens][2],
// values [8][depth][2], of which 16 dimensions are half of a register.
//
// Rows are taken 16 at a time: what the last ones find is written, but means nothing.
#pragma once

#include "amx.h"
#include "cache.h"

namespace phx::amx {

// Passes of fewer rows are decoding, which is bound by reading keys and values.
constexpr long FEWEST_PASS_ROWS = HEIGHT;

#if defined(__AMX_BF16__)

constexpr long PAIR_OF = PAIR<bf16>, WHOLE = LINE / long(sizeof(bf16));  // values of a line

// Tiles 0 to 3 are sums, 4 and 5 a line and half a line of 16 rows, 6 and 7 what these are multiplied with.
struct PassShapes : Shapes {
    PassShapes()
        : Shapes({{HEIGHT, LINE}, {HEIGHT, LINE}, {HEIGHT, LINE}, {HEIGHT, LINE},
                  {HEIGHT, LINE}, {HEIGHT, LINE / 2}, {HEIGHT, LINE}, {HEIGHT / 2, LINE}}) {}
};

// scores [16, C tiles] of 16 queries.
template <int C>
PHX_INLINE void score_tiles(const bf16* queries, long depth, const bf16* const* keys, float* scores, long stride) {
    _tile_zero(0);
    if (C > 1) _tile_zero(1);
    if (C > 2) _tile_zero(2);
    if (C > 3) _tile_zero(3);
    const long bytes = depth * long(sizeof(bf16));
    long k = 0;
    for (; k + WHOLE <= depth; k += WHOLE) {
        _tile_loadd(4, queries + k, bytes);
        _tile_loadd(6, keys[0] + k * TILE, LINE);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (C > 1) {
            _tile_loadd(6, keys[1] + k * TILE, LINE);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (C > 2) {
            _tile_loadd(6, keys[2] + k * TILE, LINE);
            _tile_dpbf16ps(2, 4, 6);
        }
        if constexpr (C > 3) {
            _tile_loadd(6, keys[3] + k * TILE, LINE);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    if (k < depth) {
        _tile_loadd(5, queries + k, bytes);
        _tile_loadd(7, keys[0] + k * TILE, LINE);
        _tile_dpbf16ps(0, 5, 7);
        if constexpr (C > 1) {
            _tile_loadd(7, keys[1] + k * TILE, LINE);
            _tile_dpbf16ps(1, 5, 7);
        }
        if constexpr (C > 2) {
            _tile_loadd(7, keys[2] + k * TILE, LINE);
            _tile_dpbf16ps(2, 5, 7);
        }
        if constexpr (C > 3) {
            _tile_loadd(7, keys[3] + k * TILE, LINE);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, scores, stride * 4);
    if (C > 1) _tile_stored(1, scores + TILE, stride * 4);
    if (C > 2) _tile_stored(2, scores + 2 * TILE, stride * 4);
    if (C > 3) _tile_stored(3, scores + 3 * TILE, stride * 4);
}

// out [16, C × 16] += weights · values, for C × 16 dimensions from `dim` on.
template <int C>
PHX_INLINE void mix_tiles(const bf16* weights, long stride, const bf16* const* values, long tiles, long depth, long dim,
                          float* out) {
    const long bytes = depth * 4;  // of a row of sums, and of a pair of tokens
    _tile_loadd(0, out + dim, bytes);
    if (C > 1) _tile_loadd(1, out + dim + LANES, bytes);
    if (C > 2) _tile_loadd(2, out + dim + 2 * LANES, bytes);
    if (C > 3) _tile_loadd(3, out + dim + 3 * LANES, bytes);
    for (long t = 0; t < tiles; ++t) {
        const bf16* from = values[t] + dim * PAIR_OF;
        _tile_loadd(5, weights + t * TILE, stride * long(sizeof(bf16)));
        _tile_loadd(7, from, bytes);
        _tile_dpbf16ps(0, 5, 7);
        if constexpr (C > 1) {
            _tile_loadd(7, from + LANES * PAIR_OF, bytes);
            _tile_dpbf16ps(1, 5, 7);
        }
        if constexpr (C > 2) {
            _tile_loadd(7, from + 2 * LANES * PAIR_OF, bytes);
            _tile_dpbf16ps(2, 5, 7);
        }
        if constexpr (C > 3) {
            _tile_loadd(7, from + 3 * LANES * PAIR_OF, bytes);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, out + dim, bytes);
    if (C > 1) _tile_stored(1, out + dim + LANES, bytes);
    if (C > 2) _tile_stored(2, out + dim + 2 * LANES, bytes);
    if (C > 3) _tile_stored(3, out + dim + 3 * LANES, bytes);
}

// Calls work(i, C) for `count` things, four at a time and then those that are left: C is a constant.
template <class Work> PHX_INLINE void by_fours(long count, Work work) {
    long i = 0;
    for (; i + 4 <= count; i += 4) work(i, std::integral_constant<int, 4>());
    switch (count - i) {
        case 3: return work(i, std::integral_constant<int, 3>());
        case 2: return work(i, std::integral_constant<int, 2>());
        case 1: return work(i, std::integral_constant<int, 1>());
    }
}

inline void fetch_tiles(const bf16* const* ahead, long tiles, long depth) {
    for (long t = 0; t < tiles; ++t) {
        for (long i = 0; i < TILE * depth; i += WHOLE) prefetch(ahead[t] + i);
    }
}

// As FloatProducts in attention.h have them.
inline void score(const bf16* queries, const bf16* const* keys, const bf16* const* ahead, long tiles, long rows, long depth,
                  float* scores, long stride) {
    const PassShapes shapes;
    for (long row = 0; row < rows; row += HEIGHT) {
        by_fours(tiles, [&](long t, auto count) {
            score_tiles<count()>(queries + row * depth, depth, keys + t, scores + row * stride + t * TILE, stride);
        });
    }
    fetch_tiles(ahead, tiles, depth);
}

inline void mix(const bf16* weights, long stride, const bf16* const* values, const bf16* const* ahead, long tiles, long rows,
                long depth, float* out) {
    const PassShapes shapes;
    for (long row = 0; row < rows; row += HEIGHT) {
        by_fours(depth / LANES, [&](long i, auto count) {
            mix_tiles<count()>(weights + row * stride, stride, values, tiles, depth, i * LANES, out + row * depth);
        });
    }
    fetch_tiles(ahead, tiles, depth);
}

#else

inline void score(const bf16*, const bf16* const*, const bf16* const*, long, long, long, float*, long) {}
inline void mix(const bf16*, long, const bf16* const*, const bf16* const*, long, long, long, float*) {}

#endif

}  // namespace phx::amx
