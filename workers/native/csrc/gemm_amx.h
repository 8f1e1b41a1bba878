// Products of bf16 and int8 rows in matrix registers. A panel is a row of their tiles as it is: 16 pairs or quadruples of
// inputs by 16 outputs.
#pragma once

#include <array>
#include <optional>

#include "ahead.h"
#include "amx.h"
#include "rows.h"

namespace phx::amx {

#if defined(__AMX_BF16__)

// A thread's tiles for products, shaped anew only where the rows' heights change: to shape them takes as long as 16 products.
// Tiles 0 to 3 are sums of two tiles of rows and two panels, 4 and 5 those rows, 6 and 7 the weights.
class Registers {
  public:
    void shape(long first, long second) {
        if (shapes_ && first == first_ && second == second_) return;
        first_ = first, second_ = second;
        shapes_.reset();
        shapes_.emplace(std::array<Shape, 8>{{{first, LINE}, {first, LINE}, {second, LINE}, {second, LINE},
                                              {first, LINE}, {second, LINE}, {HEIGHT, LINE}, {HEIGHT, LINE}}});
    }

  private:
    std::optional<Shapes> shapes_;
    long first_ = 0, second_ = 0;
};

// A product of two tiles, added to a third; their numbers have to be literals.
#define PHX_TILES(T, sums, rows, weights)               \
    if constexpr (std::is_same_v<T, bf16>) {            \
        _tile_dpbf16ps(sums, rows, weights);            \
    } else {                                            \
        _tile_dpbsud(sums, rows, weights);              \
    }

// R tiles of rows by C panels; both are loaded once for two products each.
template <int R, int C, class T, class S>
PHX_INLINE void multiply(const T* first, long first_rows, const T* second, long second_rows, const char* panel, long stride,
                         long steps, const Ahead& ahead, S (&sums)[2][2][HEIGHT * LANES]) {
    constexpr long VALUES = LINE / long(sizeof(T));
    _tile_zero(0);
    if (C > 1) _tile_zero(1);
    if (R > 1) _tile_zero(2);
    if (R > 1 && C > 1) _tile_zero(3);
    for (long k = 0; k < steps; ++k) {
        _tile_loadd(4, first, LINE);
        _tile_loadd(6, panel, LINE);
        PHX_TILES(T, 0, 4, 6)
        if constexpr (C > 1) {
            _tile_loadd(7, panel + stride, LINE);
            PHX_TILES(T, 1, 4, 7)
        }
        if constexpr (R > 1) {
            _tile_loadd(5, second, LINE);
            PHX_TILES(T, 2, 5, 6)
            if constexpr (C > 1) PHX_TILES(T, 3, 5, 7)
        }
        for (long line = 0; line < HEIGHT; ++line) ahead.fetch(k * HEIGHT + line);
        first += first_rows * VALUES, second += second_rows * VALUES, panel += HEIGHT * LINE;
    }
    _tile_stored(0, sums[0][0], LINE);
    if (C > 1) _tile_stored(1, sums[0][1], LINE);
    if (R > 1) _tile_stored(2, sums[1][0], LINE);
    if (R > 1 && C > 1) _tile_stored(3, sums[1][1], LINE);
}

// Tiles of rows `t` to t + R - 1 against C panels.
template <int R, int C, class T, class A, class Finish>
void finish_tiles(const A& a, long t, const Weight& w, long n, const Ahead& ahead, Finish& finish) {
    constexpr long P = PAIR<T>, VALUES = LINE / long(sizeof(T));
    const long steps = w.depth / VALUES, stride = w.panel_bytes();
    const long heights[2] = {a.tiles.height(t), R > 1 ? a.tiles.height(t + 1) : 0};
    const T* rows[2] = {a.data + a.tiles.begin(t) * a.depth, a.data + a.tiles.begin(t + R - 1) * a.depth};
    const char* panel = w.panel(n);
    alignas(LINE) std::conditional_t<std::is_same_v<T, bf16>, float, int32_t> sums[2][2][HEIGHT * LANES];
    multiply<R, C>(rows[0], heights[0], rows[1], heights[1], panel, stride, steps, ahead, sums);
    for (int tile = 0; tile < R; ++tile) {
        for (long r = 0; r < heights[tile]; ++r) {
            const long m = a.tiles.begin(t + tile) + r;
            F32 out[C];
            for (int c = 0; c < C; ++c) {
                auto sum = load(sums[tile][c] + r * LANES);
                // Inputs that fill no tile.
                const T* rest = rows[tile] + (steps * heights[tile] + r) * VALUES;
                for (long k = steps * HEIGHT; k < w.depth / P; ++k, rest += P) {
                    const char* weights = panel + c * stride + k * LINE;
                    sum = dot(sum, spread(rest), load_weights(reinterpret_cast<const T*>(weights)));
                }
                out[c] = output(a, m, w, n + c, sum);
            }
            if constexpr (Finish::PAIRS) {
                finish(m, n * LANES, out[0], out[C - 1]);
            } else {
                for (int c = 0; c < C; ++c) finish(m, (n + c) * LANES, out[c]);
            }
        }
    }
}

// As the function of this name in gemm.h.
template <int C, class A, class Finish>
void finish_block(const A& a, long first, long last, const Weight& w, long n, long next, Registers& registers,
                  Finish& finish) {
    using Value = std::remove_pointer_t<decltype(a.data)>;
    const long panels = next < 0 ? 0 : std::min<long>(C, w.panels - next), lines = last - first <= 2 ? panels : 1;
    const auto ahead = [&](long t) {
        const long panel = (t - first) / 2 * lines;
        return panel < panels ? Ahead{w.panel(next + panel), lines} : Ahead{};
    };
    long t = first;
    for (; t + 2 <= last; t += 2) {
        registers.shape(a.tiles.height(t), a.tiles.height(t + 1));
        finish_tiles<2, C, Value>(a, t, w, n, ahead(t), finish);
    }
    if (t < last) {
        registers.shape(a.tiles.height(t), a.tiles.height(t));
        finish_tiles<1, C, Value>(a, t, w, n, ahead(t), finish);
    }
}

#else

struct Registers {};

template <int C, class A, class Finish>
void finish_block(const A&, long, long, const Weight&, long, long, Registers&, Finish&) {}

#endif

}  // namespace phx::amx
