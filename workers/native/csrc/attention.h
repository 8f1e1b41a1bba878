// Paged attention, straight from the KV blocks.
//
// Softmax is taken piece by piece with a running maximum (Milakov & Gimelshein, 2018; Dao et al., "FlashAttention",
// 2022).
#pragma once

#include <cmath>
#include <limits>
#include <optional>

#include "attention_int8.h"
#include "attention_widened.h"
#include "cache.h"
#include "gemm.h"

namespace phx {

constexpr long PIECE = 4;       // tiles whose scores are held at once
constexpr long QUERY_ROWS = 96; // query tokens × heads that share one pass over the keys

// A sequence's part of the batch: `count` tokens from `first` on, the first of them at `position`.
struct Chunk {
    long first, count, position;
    const int32_t* table;  // its KV blocks
};

// One pass: tokens [begin, end) of a chunk, all query heads of one KV head, tiles [first_tile, last_tile).
struct Pass {
    Chunk chunk;
    long begin, end;
    long kv_head, first_query_head, query_heads;
    long first_tile, last_tile;
    long part = -1;  // place of the partial result when the tiles are shared out; -1 for the whole

    long rows() const { return (end - begin) * query_heads; }
    long pieces() const { return (last_tile - first_tile + PIECE - 1) / PIECE; }

    // In rows' worth of a tile; to read a tile's keys and values takes about as long as eight rows' arithmetic.
    long work() const { return (last_tile - first_tile) * (rows() + 8); }
};

// The tiles that a pass looks at next.
template <class S> struct Piece {
    long first = 0, count = 0;
    const S *keys[PIECE], *values[PIECE];

    // Piece `number` of `pieces`, which are about as long as each other.
    void find(const Pass& pass, const Cache<S>& cache, long number, long pieces) {
        const long tiles = pass.last_tile - pass.first_tile, per_block = cache.shape.tiles();
        first = pass.first_tile + tiles * number / pieces;
        count = pass.first_tile + tiles * (number + 1) / pieces - first;
        for (long t = 0; t < count; ++t) {
            const long block = pass.chunk.table[(first + t) / per_block];
            const long place = cache.place(block, pass.kv_head, (first + t) % per_block);
            keys[t] = cache.keys + place, values[t] = cache.values + place;
        }
    }
};

template <class S> using ProductsWith = std::conditional_t<Cache<S>::SCALED, Int8Products, FloatProducts<S>>;

struct NoProducts {
    NoProducts(long, long, long) {}
};

// A thread's room for one piece of work, of queries in T and a cache in S.
template <class T, class S> struct AttentionScratch {
    static constexpr bool WIDENS = amx::COMPILED && std::is_same_v<T, bf16> && Cache<S>::SCALED;

    ProductsWith<S> products;
    std::conditional_t<WIDENS, WidenedProducts, NoProducts> widened;
    Lines<float> scores, out, maximum, total, totals;  // totals: [rows, 16] of what `total` will be
    // Room for whole tiles of matrix registers.
    AttentionScratch(long rows, long depth) : AttentionScratch(round_up(rows, amx::HEIGHT), depth, PIECE * TILE) {}

  private:
    AttentionScratch(long rows, long depth, long keys)
        : products(rows, depth, keys), widened(rows, depth, keys), scores(rows * keys), out(rows * depth), maximum(rows),
          total(rows), totals(rows * LANES) {}
};

// Infinity for the first 16, -infinity for the others.
struct Visible {
    float limit[2 * TILE];
    constexpr Visible() : limit() {
        for (long i = 0; i < 2 * TILE; ++i) {
            limit[i] = i < TILE ? std::numeric_limits<float>::infinity() : -std::numeric_limits<float>::infinity();
        }
    }
};

// Scores of keys a query may not look at become -infinity: later ones, those before the window, and unused places.
PHX_INLINE void hide(float* scores, long first_key, long keys, long position, long window) {
    static constexpr Visible visible;
    const long end = std::clamp(position + 1 - first_key, 0l, keys);
    store(scores, min(load(scores), load(visible.limit + TILE - end)));
    const long begin = window ? std::min(position - window + 1 - first_key, TILE) : 0;
    for (long i = 0; i < begin; ++i) scores[i] = -std::numeric_limits<float>::infinity();
}

// How much the largest of a row's scores may have grown, in powers of 2, before its sums so far are scaled down to it.
constexpr float GROWTH = 8;

// Scores of rows [begin, end), 16 at most, of a group that begins with row `first` become weights: powers of 2 relative to
// about their maximum so far.
template <class Products, class S, class Scratch>
PHX_INLINE void soften(Products& products, const Piece<S>& piece, long first, long begin, long end, long depth, float scale,
                       Scratch& s) {
    const long stride = PIECE * TILE, tiles = piece.count;
    const F32 factor = set1(scale), before = load(s.maximum.data() + begin);
    F32 of_rows[LANES];
    for (long r = 0; r < LANES; ++r) {
        const float* scores = s.scores.data() + (std::min(begin + r, end - 1) - first) * stride;
        of_rows[r] = load(scores);
        for (long t = 1; t < tiles; ++t) of_rows[r] = max(of_rows[r], load(scores + t * TILE));
    }
    F32 best = largest_of(of_rows);
    best = mul(best, factor);
    const F32 growth = where_above(best, before, sub(best, before), zero());
    if (any_above(growth, GROWTH)) {
        alignas(LINE) float fades[LANES];
        const F32 now = where_above(growth, set1(GROWTH), best, before);
        store(fades, exp2(max(sub(before, now), set1(-126.0f))));
        store(s.maximum.data() + begin, now);
        for (long r = begin; r < end; ++r) {
            const F32 fade = set1(fades[r - begin]);
            store(s.totals.data() + r * LANES, mul(load(s.totals.data() + r * LANES), fade));
            float* out = s.out.data() + r * depth;
            for (long d = 0; d < depth; d += LANES) store(out + d, mul(load(out + d), fade));
        }
    }
    for (long r = begin; r < end; ++r) {
        const float *scores = s.scores.data() + (r - first) * stride, maximum = s.maximum[r];
        const F32 shift = set1(maximum == -std::numeric_limits<float>::infinity() ? 0.0f : -maximum);
        F32 total = load(s.totals.data() + r * LANES);
        auto* to = products.weights(r);
        for (long t = 0; t < tiles; ++t) {
            const F32 p = exp2<EXP_TERMS<typename Products::Weights>>(fma(load(scores + t * TILE), factor, shift));
            products.weigh(to + t * TILE, p, piece.values[t]);
            total = add(total, p);
        }
        products.weighed(r, tiles);
        store(s.totals.data() + r * LANES, total);
    }
}

template <class Products, class T, class S, class Scratch>
void attend_with(Products& products, const Pass& pass, const Pass* next, const Cache<S>& cache, const T* queries, long heads,
                 long window, float scale, Scratch& s) {
    const CacheShape& shape = cache.shape;
    const long depth = shape.depth(), group = pass.query_heads, rows = pass.rows();
    const long per_block = shape.tiles(), stride = PIECE * TILE;
    for (long token = pass.begin; token < pass.end; ++token) {
        const T* from = queries + ((pass.chunk.first + token) * heads + pass.first_query_head) * depth;
        products.take((token - pass.begin) * group, from, group);
    }
    std::fill(s.out.begin(), s.out.begin() + rows * depth, 0.0f);
    std::fill(s.maximum.begin(), s.maximum.begin() + rows, -std::numeric_limits<float>::infinity());
    std::fill(s.totals.begin(), s.totals.begin() + rows * LANES, 0.0f);
    const long first_position = pass.chunk.position + pass.begin, last_position = pass.chunk.position + pass.end - 1;
    const long pieces = pass.pieces(), at_once = products.at_once(rows);
    std::optional<amx::PassShapes> shapes;
    if (products.in_matrix_registers(rows)) shapes.emplace();
    Piece<S> piece, ahead;
    piece.find(pass, cache, 0, pieces);
    for (long number = 0; number < pieces; ++number, piece = ahead) {
        if (number + 1 < pieces) {
            ahead.find(pass, cache, number + 1, pieces);
        } else if (next != nullptr) {
            ahead.find(*next, cache, 0, next->pieces());
        } else {
            ahead.count = 0;
        }
        const long tiles = piece.count;
        for (long t = ahead.count; t < tiles; ++t) ahead.keys[t] = piece.keys[t], ahead.values[t] = piece.values[t];
        for (long t = tiles; t < ahead.count; ++t) {
            for (long i = 0; i < cache.tile_size(shape); i += LINE / long(sizeof(S))) {
                prefetch(ahead.keys[t] + i);
                prefetch(ahead.values[t] + i);
            }
        }
        products.meet(piece.keys, piece.values, ahead.keys, ahead.values, tiles, rows);
        const auto mix = [&](long begin) {
            const long end = std::min(begin + at_once, rows);
            products.mix(piece.values, ahead.values, tiles, begin, end, s.out.data() + begin * depth);
        };
        // One group's products are taken while the other's last stores, which they do not need, are on their way.
        for (long begin = 0; begin < rows; begin += at_once) {
            const long end = std::min(begin + at_once, rows);
            products.score(piece.keys, ahead.keys, tiles, begin, end, s.scores.data());
            if (begin > 0) mix(begin - at_once);
            for (long t = 0; t < tiles; ++t) {
                const long in_block = (piece.first + t) % per_block * TILE;
                const long first_key = (piece.first + t) / per_block * shape.block_size + in_block;
                const long used = std::min(TILE, shape.block_size - in_block);
                const bool in_window = window == 0 || first_key > last_position - window;
                if (used == TILE && first_key + TILE <= first_position + 1 && in_window) continue;
                for (long r = begin; r < end; ++r) {
                    float* scores = s.scores.data() + (r - begin) * stride + t * TILE;
                    hide(scores, first_key, used, first_position + r / group, window);
                }
            }
            for (long r = begin; r < end; r += LANES) {
                soften(products, piece, begin, r, std::min(r + LANES, end), depth, scale * LOG2_E, s);
            }
        }
        mix((rows - 1) / at_once * at_once);
    }
    for (long r = 0; r < rows; ++r) s.total[r] = sum(load(s.totals.data() + r * LANES));
}

// Leaves the unnormalised sums in scratch.out, [rows, depth], with their maxima and totals. `next` is the pass that this
// thread will do after this one, or null.
template <class T, class S>
void attend(const Pass& pass, const Pass* next, const Cache<S>& cache, const Kept<T>* queries, long heads, long window,
            float scale, AttentionScratch<T, S>& s) {
    if constexpr (AttentionScratch<T, S>::WIDENS) {
        if (s.widened.in_matrix_registers(pass.rows())) {
            return attend_with(s.widened, pass, next, cache, queries, heads, window, scale, s);
        }
    }
    attend_with(s.products, pass, next, cache, queries, heads, window, scale, s);
}

}  // namespace phx
