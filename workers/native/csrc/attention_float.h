// Attention's products with keys and values in bf16 or float32.
#pragma once

#include <algorithm>
#include <type_traits>

#include "attention_amx.h"
#include "gemm.h"
#include "pages.h"

namespace phx {

// `ahead` are tiles to fetch meanwhile: with few rows a piece is over before the processor has guessed where the next
// one lies.
template <int R, int C, class T>
PHX_INLINE void score_tiles(const Kept<T>* queries, long depth, const T* const* keys, const T* const* ahead, float* scores,
                            long stride) {
    constexpr long P = PAIR<T>;
    F32 acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = zero();
    for (long k = 0; k < depth / P; ++k) {
        const T* w[C];
        for (int c = 0; c < C; ++c) w[c] = keys[c] + k * LANES * P, prefetch(ahead[c] + k * LANES * P);
        multiply<T>(queries + k * P, depth, w, acc);
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(scores + r * stride + c * LANES, acc[r][c]);
}

template <int R, int C, class T>
void score_rows(const Kept<T>* queries, long rows, long depth, const T* const* keys, const T* const* ahead, float* scores,
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
PHX_INLINE void mix_tile(const Kept<T>* weights, long stride, const T* const* values, const T* const* ahead, long tiles,
                         long depth, long dim, float* out) {
    constexpr long P = PAIR<T>;
    F32 acc[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = load(out + r * depth + dim + c * LANES);
    for (long t = 0; t < tiles; ++t) {
        const T *v = values[t] + dim * P, *next = ahead[t] + dim * P;
        for (long k = 0; k < TILE / P; ++k) {
            const T* w[C];
            for (int c = 0; c < C; ++c) {
                w[c] = v + (k * depth + c * LANES) * P;
                prefetch(next + (k * depth + c * LANES) * P);
            }
            multiply<T>(weights + t * TILE + k * P, stride, w, acc);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) store(out + r * depth + dim + c * LANES, acc[r][c]);
}

template <int R, class T>
void mix_rows(const Kept<T>* weights, long stride, const T* const* values, const T* const* ahead, long tiles, long rows,
              long depth, float* out) {
    while (rows >= R) {
        long dim = 0;
        for (; dim + TILE_PANELS * LANES <= depth; dim += TILE_PANELS * LANES) {
            mix_tile<R, TILE_PANELS>(weights, stride, values, ahead, tiles, depth, dim, out);
        }
        if (dim < depth) mix_tile<R, 1>(weights, stride, values, ahead, tiles, depth, dim, out);
        weights += R * stride, out += R * depth, rows -= R;
        ahead = values;
    }
    if constexpr (R > 1) {
        if (rows > 0) mix_rows<R - 1>(weights, stride, values, ahead, tiles, rows, depth, out);
    }
}

// A pass's queries, its softmax's weights, and their products with a cache of the same type. Rows are taken `at_once(rows)`
// at a time: scores and weights are those of the rows [begin, end) of such a group.
template <class T> class FloatProducts {
  public:
    using Weights = T;

    FloatProducts(long rows, long depth, long keys)
        : queries_(rows * depth), weights_(rows * keys), joined_(keys * depth), depth_(depth), keys_(keys) {}

    // Whether a pass, or a group that ends with this row, is done in matrix registers.
    static bool in_matrix_registers(long rows) {
        return std::is_same_v<T, bf16> && rows >= amx::FEWEST_PASS_ROWS && amx::usable();
    }
    static long at_once(long rows) { return in_matrix_registers(rows) ? amx::HEIGHT : rows; }

    // `count` rows from `row` on.
    void take(long row, const Kept<T>* queries, long count) { std::copy_n(queries, count * depth_, queries_.data() + row * depth_); }
    // What comes before the groups of a piece. Tiles of `ahead` are fetched here, or in `score` and `mix`.
    void meet(const T* const*, const T* const* values, const T* const* ahead_keys, const T* const* ahead_values, long tiles,
              long rows) {
        if constexpr (std::is_same_v<T, bf16>) {
            if (!in_matrix_registers(rows)) return;
            amx::join(values, tiles, depth_, joined_.data());
            amx::fetch_tiles(ahead_keys, tiles, depth_);
            amx::fetch_tiles(ahead_values, tiles, depth_);
        }
    }
    // scores [end - begin, keys]
    void score(const T* const* keys, const T* const* ahead, long tiles, long begin, long end, float* scores) const {
        constexpr int R = TILE_ROWS<T>;
        const Kept<T>* queries = queries_.data() + begin * depth_;
        if constexpr (std::is_same_v<T, bf16>) {
            if (in_matrix_registers(end)) return amx::score(queries, keys, tiles, depth_, scores, keys_);
        }
        const long rows = end - begin;
        long t = 0;
        for (; t + TILE_PANELS <= tiles; t += TILE_PANELS) {
            score_rows<R, TILE_PANELS>(queries, rows, depth_, keys + t, ahead + t, scores + t * TILE, keys_);
        }
        if (t < tiles) score_rows<R, 1>(queries, rows, depth_, keys + t, ahead + t, scores + t * TILE, keys_);
    }
    // Where a row's weights go, one tile's after the other; then, that all are there.
    Kept<T>* weights(long row) { return weights_.data() + row * keys_; }
    PHX_INLINE static void weigh(Kept<T>* to, F32 weight, const T*) { keep(to, weight, T{}); }
    void weighed(long, long) {}
    // out [end - begin, depth] += weights · values
    void mix(const T* const* values, const T* const* ahead, long tiles, long begin, long end, float* out) const {
        if constexpr (std::is_same_v<T, bf16>) {
            if (in_matrix_registers(end)) return amx::mix(weights_.data() + begin * keys_, keys_, joined_.data(), tiles, depth_, out);
        }
        mix_rows<TILE_ROWS<T>>(weights_.data(), keys_, values, ahead, tiles, end - begin, depth_, out);
    }

  private:
    Lines<Kept<T>> queries_, weights_;
    Lines<T> joined_;
    const long depth_, keys_;
};

}  // namespace phx
