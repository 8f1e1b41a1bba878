// Paged attention, straight from the KV blocks.
//
// Softmax is taken piece by piece with a running maximum (Milakov & Gimelshein, 2018; Dao et al., "FlashAttention",
// 2022).
#pragma once

#include <cmath>
#include <limits>

#include "attention_amx.h"
#include "attention_int8.h"
#include "cache.h"
#include "gemm.h"

namespace phx {

constexpr long PIECE = 8;       // tiles whose scores are held at once
constexpr long QUERY_ROWS = 48; // query tokens × heads that share one pass over the keys

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

// `ahead` are tiles to fetch meanwhile: with few rows a piece is over before the processor has guessed where the next
// one lies.
template <int R, int C, class T>
PHX_INLINE void score_tiles(const T* queries, long depth, const T* const* keys, const T* const* ahead, float* scores,
                            long stride) {
    constexpr long P = PAIR<T>;
    F32 acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = zero();
    for (long k = 0; k < depth / P; ++k) {
        decltype(load_weights(queries)) w[C];
        for (int c = 0; c < C; ++c) w[c] = load_weights(keys[c] + k * LANES * P), prefetch(ahead[c] + k * LANES * P);
        for (int r = 0; r < R; ++r) {
            const auto q = spread(queries + r * depth + k * P);
            for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], q, w[c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(scores + r * stride + c * LANES, acc[r][c]);
}

template <int R, int C, class T>
void score_rows(const T* queries, long rows, long depth, const T* const* keys, const T* const* ahead, float* scores,
                long stride) {
    while (rows >= R) {
        score_tiles<R, C>(queries, depth, keys, ahead, scores, stride);
        queries += R * depth, scores += R * stride, rows -= R;
        ahead = keys;
    }
    if constexpr (R > 1) {
        if (rows > 0) score_rows<R - 1, C>(queries, rows, depth, keys, ahead, scores, stride);
    }
}

// out += weights · values, for C × 16 dimensions from `dim` on.
template <int R, int C, class T>
PHX_INLINE void mix_tile(const T* weights, long stride, const T* const* values, const T* const* ahead, long tiles,
                         long depth, long dim, float* out) {
    constexpr long P = PAIR<T>;
    F32 acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = load(out + r * depth + dim + c * LANES);
    for (long t = 0; t < tiles; ++t) {
        const T *v = values[t] + dim * P, *next = ahead[t] + dim * P;
        for (long k = 0; k < TILE / P; ++k) {
            decltype(load_weights(v)) w[C];
            for (int c = 0; c < C; ++c) {
                w[c] = load_weights(v + (k * depth + c * LANES) * P);
                prefetch(next + (k * depth + c * LANES) * P);
            }
            for (int r = 0; r < R; ++r) {
                const auto p = spread(weights + r * stride + t * TILE + k * P);
                for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], p, w[c]);
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(out + r * depth + dim + c * LANES, acc[r][c]);
}

template <int R, class T>
void mix_rows(const T* weights, long stride, const T* const* values, const T* const* ahead, long tiles, long rows,
              long depth, float* out) {
    while (rows >= R) {
        long dim = 0;
        for (; dim + 2 * LANES <= depth; dim += 2 * LANES) {
            mix_tile<R, 2>(weights, stride, values, ahead, tiles, depth, dim, out);
        }
        if (dim < depth) mix_tile<R, 1>(weights, stride, values, ahead, tiles, depth, dim, out);
        weights += R * stride, out += R * depth, rows -= R;
        ahead = values;
    }
    if constexpr (R > 1) {
        if (rows > 0) mix_rows<R - 1>(weights, stride, values, ahead, tiles, rows, depth, out);
    }
}

// A pass's queries, its softmax's weights, and their products with a cache of the same type.
template <class T> class FloatProducts {
  public:
    FloatProducts(long rows, long depth, long keys) : queries_(rows * depth), weights_(rows * keys), depth_(depth), keys_(keys) {}

    // `count` rows from `row` on.
    void take(long row, const T* queries, long count) {
        std::memcpy(queries_.data() + row * depth_, queries, count * depth_ * sizeof(T));
    }
    // Scores of all rows, [rows, keys]. Here and in `mix`, tiles of `ahead` are fetched meanwhile.
    void score(const T* const* keys, const T* const* ahead, long tiles, long rows, float* scores) const {
        constexpr int R = TILE_ROWS;
        if constexpr (std::is_same_v<T, bf16>) {
            if (in_matrix_registers(rows)) {
                return amx::score(queries_.data(), keys, ahead, tiles, rows, depth_, scores, keys_);
            }
        }
        long t = 0;
        for (; t + 2 <= tiles; t += 2) {
            score_rows<R, 2>(queries_.data(), rows, depth_, keys + t, ahead + t, scores + t * TILE, keys_);
        }
        if (t < tiles) score_rows<R, 1>(queries_.data(), rows, depth_, keys + t, ahead + t, scores + t * TILE, keys_);
    }
    // A row's weights of a tile's values; then, that it has those of all tiles.
    PHX_INLINE void weigh(long row, long tile, F32 weight, const T*) {
        store_as(weights_.data() + row * keys_ + tile * TILE, weight);
    }
    void weighed(long, long) {}
    // out [rows, depth] += weights · values
    void mix(const T* const* values, const T* const* ahead, long tiles, long rows, float* out) const {
        if constexpr (std::is_same_v<T, bf16>) {
            if (in_matrix_registers(rows)) {
                return amx::mix(weights_.data(), keys_, values, ahead, tiles, rows, depth_, out);
            }
        }
        mix_rows<TILE_ROWS>(weights_.data(), keys_, values, ahead, tiles, rows, depth_, out);
    }

  private:
    static bool in_matrix_registers(long rows) { return rows >= amx::FEWEST_PASS_ROWS && amx::usable(); }

    Lines<T> queries_, weights_;
    const long depth_, keys_;
};

template <class S> using ProductsWith = std::conditional_t<Cache<S>::SCALED, Int8Products, FloatProducts<S>>;

// A thread's room for one piece of work.
template <class S> struct AttentionScratch {
    ProductsWith<S> products;
    Lines<float> scores, out, maximum, total;
    // Room for whole tiles of matrix registers.
    AttentionScratch(long rows, long depth) : AttentionScratch(round_up(rows, amx::HEIGHT), depth, PIECE * TILE) {}

  private:
    AttentionScratch(long rows, long depth, long keys)
        : products(rows, depth, keys), scores(rows * keys), out(rows * depth), maximum(rows), total(rows) {}
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

// Leaves the unnormalised sums in scratch.out, [rows, depth], with their maxima and totals. `next` is the pass that this
// thread will do after this one, or null.
template <class T, class S>
void attend(const Pass& pass, const Pass* next, const Cache<S>& cache, const T* queries, long heads, long window,
            float scale, AttentionScratch<S>& s) {
    const CacheShape& shape = cache.shape;
    const long depth = shape.depth(), group = pass.query_heads, rows = pass.rows();
    const long per_block = shape.tiles(), stride = PIECE * TILE;
    for (long token = pass.begin; token < pass.end; ++token) {
        const T* from = queries + ((pass.chunk.first + token) * heads + pass.first_query_head) * depth;
        s.products.take((token - pass.begin) * group, from, group);
    }
    std::fill(s.out.begin(), s.out.begin() + rows * depth, 0.0f);
    std::fill(s.maximum.begin(), s.maximum.begin() + rows, -std::numeric_limits<float>::infinity());
    std::fill(s.total.begin(), s.total.begin() + rows, 0.0f);
    const long first_position = pass.chunk.position + pass.begin, last_position = pass.chunk.position + pass.end - 1;
    const F32 factor = set1(scale * LOG2_E);  // maxima and exponents are those of powers of 2
    const long pieces = pass.pieces();
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
        s.products.score(piece.keys, ahead.keys, tiles, rows, s.scores.data());
        for (long t = 0; t < tiles; ++t) {
            const long in_block = (piece.first + t) % per_block * TILE;
            const long first_key = (piece.first + t) / per_block * shape.block_size + in_block;
            const long used = std::min(TILE, shape.block_size - in_block);
            const bool in_window = window == 0 || first_key > last_position - window;
            if (used == TILE && first_key + TILE <= first_position + 1 && in_window) continue;
            for (long r = 0; r < rows; ++r) {
                hide(s.scores.data() + r * stride + t * TILE, first_key, used, first_position + r / group, window);
            }
        }
        for (long r = 0; r < rows; ++r) {
            const float* scores = s.scores.data() + r * stride;
            F32 best = load(scores);
            for (long t = 1; t < tiles; ++t) best = max(best, load(scores + t * TILE));
            const float maximum = std::max(s.maximum[r], largest(best) * scale * LOG2_E);
            if (maximum == -std::numeric_limits<float>::infinity()) {  // nothing to see in this piece
                for (long t = 0; t < tiles; ++t) s.products.weigh(r, t, zero(), piece.values[t]);
                s.products.weighed(r, tiles);
                continue;
            }
            const F32 shift = set1(-maximum);
            F32 total = zero();
            for (long t = 0; t < tiles; ++t) {
                const F32 p = exp2<EXP_TERMS<T>>(fma(load(scores + t * TILE), factor, shift));
                s.products.weigh(r, t, p, piece.values[t]);
                total = add(total, p);
            }
            s.products.weighed(r, tiles);
            const float fade = s.maximum[r] == maximum ? 1.0f : std::exp2(s.maximum[r] - maximum);
            s.total[r] = s.total[r] * fade + sum(total);
            s.maximum[r] = maximum;
            if (fade != 1.0f) {
                float* out = s.out.data() + r * depth;
                for (long d = 0; d < depth; d += LANES) store(out + d, mul(load(out + d), set1(fade)));
            }
        }
        s.products.mix(piece.values, ahead.values, tiles, rows, s.out.data());
    }
}

}  // namespace phx
