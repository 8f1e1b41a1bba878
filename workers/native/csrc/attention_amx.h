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
        : Shapes({{{HEIGHT, LINE}, {HEIGHT, LINE}, {HEIGHT, LINE}, {HEIGHT, LINE},
                   {HEIGHT, LINE}, {HEIGHT, LINE / 2}, {HEIGHT, LINE}, {HEIGHT / 2, LINE}}}) {}
};

// sums [16, C × 16]: what is there, or zero, + left · right.
template <int C> struct Sums {
    float* sums;
    long bytes;

    PHX_INLINE void load() const {
        _tile_loadd(0, sums, bytes);
        if (C > 1) _tile_loadd(1, sums + LANES, bytes);
        if (C > 2) _tile_loadd(2, sums + 2 * LANES, bytes);
        if (C > 3) _tile_loadd(3, sums + 3 * LANES, bytes);
    }
    PHX_INLINE void clear() const {
        _tile_zero(0);
        if (C > 1) _tile_zero(1);
        if (C > 2) _tile_zero(2);
        if (C > 3) _tile_zero(3);
    }
    // Right are the places of C columns.
    PHX_INLINE void add(const bf16* left, long left_bytes, const bf16* const (&right)[C]) const {
        _tile_loadd(4, left, left_bytes);
        _tile_loadd(6, right[0], LINE);
        _tile_dpbf16ps(0, 4, 6);
        if constexpr (C > 1) {
            _tile_loadd(6, right[1], LINE);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (C > 2) {
            _tile_loadd(6, right[2], LINE);
            _tile_dpbf16ps(2, 4, 6);
        }
        if constexpr (C > 3) {
            _tile_loadd(6, right[3], LINE);
            _tile_dpbf16ps(3, 4, 6);
        }
    }
    PHX_INLINE void add_half(const bf16* left, long left_bytes, const bf16* const (&right)[C]) const {
        _tile_loadd(5, left, left_bytes);
        _tile_loadd(7, right[0], LINE);
        _tile_dpbf16ps(0, 5, 7);
        if constexpr (C > 1) {
            _tile_loadd(7, right[1], LINE);
            _tile_dpbf16ps(1, 5, 7);
        }
        if constexpr (C > 2) {
            _tile_loadd(7, right[2], LINE);
            _tile_dpbf16ps(2, 5, 7);
        }
        if constexpr (C > 3) {
            _tile_loadd(7, right[3], LINE);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    PHX_INLINE void store() const {
        _tile_stored(0, sums, bytes);
        if (C > 1) _tile_stored(1, sums + LANES, bytes);
        if (C > 2) _tile_stored(2, sums + 2 * LANES, bytes);
        if (C > 3) _tile_stored(3, sums + 3 * LANES, bytes);
    }
};

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
        for (long i = 0; i < TILE * depth; i += 4 * WHOLE) prefetch(ahead[t] + i);
    }
}

// Pairs of tiles of values, each as [depth / 16][16 pairs of tokens][16][2]: whole registers, where those of one tile are
// half empty. What an odd last one lacks is zero.
inline void join(const bf16* const* values, long tiles, long depth, bf16* joined) {
    constexpr long HALF = TILE / PAIR_OF, VALUES = LANES * PAIR_OF;
    for (long t = 0; t < round_up(tiles, 2); ++t) {
        bf16* to = joined + t / 2 * 2 * TILE * depth + t % 2 * HALF * VALUES;
        for (long k = 0; k < HALF; ++k, to += VALUES) {
            for (long d = 0; d < depth; d += LANES) {
                const __m512i line = t < tiles ? _mm512_loadu_si512(values[t] + (k * depth + d) * PAIR_OF) : _mm512_setzero_si512();
                _mm512_store_si512(to + d * HEIGHT * PAIR_OF, line);
            }
        }
    }
}

// Scores of 16 rows, as FloatProducts have them.
inline void score(const bf16* queries, const bf16* const* keys, long tiles, long depth, float* scores, long stride) {
    const long bytes = depth * long(sizeof(bf16));
    by_fours(tiles, [&](long t, auto count) {
        constexpr int C = count();
        const Sums<C> sums{scores + t * TILE, stride * long(sizeof(float))};
        const bf16* right[C];
        for (int c = 0; c < C; ++c) right[c] = keys[t + c];
        sums.clear();
        long k = 0;
        for (; k + WHOLE <= depth; k += WHOLE) {
            sums.add(queries + k, bytes, right);
            for (int c = 0; c < C; ++c) right[c] += WHOLE * TILE;
        }
        if (k < depth) sums.add_half(queries + k, bytes, right);
        sums.store();
    });
}

inline void mix(const bf16* weights, long stride, const bf16* joined, long tiles, long depth, float* out) {
    const long bytes = stride * long(sizeof(bf16)), columns = HEIGHT * LANES * PAIR_OF;
    by_fours(depth / LANES, [&](long i, auto count) {
        constexpr int C = count();
        const Sums<C> sums{out + i * LANES, depth * long(sizeof(float))};
        const bf16* right[C];
        for (int c = 0; c < C; ++c) right[c] = joined + (i + c) * columns;
        sums.load();
        for (long t = 0; t < tiles; t += 2) {
            sums.add(weights + t * TILE, bytes, right);
            for (int c = 0; c < C; ++c) right[c] += 2 * TILE * depth;
        }
        sums.store();
    });
}

#else

struct PassShapes {};

inline void fetch_tiles(const bf16* const*, long, long) {}
inline void join(const bf16* const*, long, long, bf16*) {}
inline void score(const Kept<bf16>*, const bf16* const*, long, long, float*, long) {}
inline void mix(const Kept<bf16>*, long, const bf16*, long, long, float*) {}

#endif

}  // namespace phx::amx
