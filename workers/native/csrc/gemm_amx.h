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

// A thread's part of a product. The sums of two tiles of rows and two panels are finished while the next ones are
// multiplied, so that the matrix unit and the vectors' are busy at the same time: the processor does not look that far
// ahead by itself.
template <class A, class Finish> class Batch {
    using T = typename A::Value;
    static constexpr long P = PAIR<T>, VALUES = LINE / long(sizeof(T));
    using Sums = std::conditional_t<std::is_same_v<T, bf16>, float, int32_t>[2][2][HEIGHT * LANES];

  public:
    Batch(const A& a, const Weight& w, Finish& finish) : a_(a), w_(w), finish_(finish) {}

    // As the function of this name in gemm.h.
    template <int C> void multiply(long first, long last, const Weight& w, long n, long next) {
        const long panels = next < 0 ? 0 : std::min<long>(C, w.panels - next), lines = last - first <= 2 ? panels : 1;
        const auto ahead = [&](long t) {
            const long panel = (t - first) / 2 * lines;
            return panel < panels ? Ahead{w.panel(next + panel), lines} : Ahead{nullptr, 0};
        };
        long t = first;
        for (; t + 2 <= last; t += 2) {
            registers_.shape(a_.tiles.height(t), a_.tiles.height(t + 1));
            multiply_tiles<2, C>(t, w, n, ahead(t));
        }
        if (t < last) {
            registers_.shape(a_.tiles.height(t), a_.tiles.height(t));
            multiply_tiles<1, C>(t, w, n, ahead(t));
        }
    }

    void finish_rest() { finish_rows(rows_); }

  private:
    // Tiles of rows t to t + R - 1 against C panels; both are loaded once for two products each.
    template <int R, int C> void multiply_tiles(long t, const Weight& w, long n, const Ahead& ahead) {
        const long steps = w.depth / VALUES, stride = w.panel_bytes();
        const long heights[2] = {a_.tiles.height(t), R > 1 ? a_.tiles.height(t + 1) : 0};
        const T *first = a_.data + a_.tiles.begin(t) * a_.depth, *second = a_.data + a_.tiles.begin(t + R - 1) * a_.depth;
        const char* panel = w.panel(n);
        const long halves = 2 * (steps - 1), share = halves > 0 ? (rows_ + halves - 1) / halves : 0;
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
            if (k > 0) finish_rows(share);  // at first, their sums are still on their way
            if constexpr (R > 1) {
                _tile_loadd(5, second, LINE);
                PHX_TILES(T, 2, 5, 6)
                if constexpr (C > 1) PHX_TILES(T, 3, 5, 7)
            }
            for (long line = 0; ahead.lines > 0 && line < HEIGHT; ++line) ahead.fetch(k * HEIGHT + line);
            first += heights[0] * VALUES, second += heights[R - 1] * VALUES, panel += HEIGHT * LINE;
            if (k > 0) finish_rows(share);
        }
        finish_rest();
        Sums& sums = sums_[turn_ = !turn_];
        _tile_stored(0, sums[0][0], LINE);
        if (C > 1) _tile_stored(1, sums[0][1], LINE);
        if (R > 1) _tile_stored(2, sums[1][0], LINE);
        if (R > 1 && C > 1) _tile_stored(3, sums[1][1], LINE);
        begin_ = a_.tiles.begin(t), height_ = heights[0], rows_ = heights[0] + heights[1], done_ = 0, panel_ = n, panels_ = C;
        if (steps * HEIGHT < w.depth / P) add_rest(first, second, panel, stride, w.depth / P - steps * HEIGHT);
    }

    // Inputs that fill no tile: `steps` pairs, the first and the second tile's from where these point to.
    void add_rest(const T* first, const T* second, const char* panel, long stride, long steps) {
        for (long i = 0; i < rows_; ++i) {
            const long tile = i >= height_, r = i - tile * height_;
            for (long c = 0; c < panels_; ++c) {
                auto* place = sums_[turn_][tile][c] + r * LANES;
                auto sum = load(place);
                const T* from = (tile == 0 ? first : second) + r * VALUES;
                for (long k = 0; k < steps; ++k) {
                    const char* weights = panel + c * stride + k * LINE;
                    sum = dot(sum, spread(from + k * P), load_weights(reinterpret_cast<const T*>(weights)));
                }
                store(place, sum);
            }
        }
    }

    // The next `count` rows of the sums that are there.
    PHX_INLINE void finish_rows(long count) {
        for (const long end = std::min(done_ + count, rows_); done_ < end; ++done_) {
            const long tile = done_ >= height_, r = done_ - tile * height_, m = begin_ + done_;
            const auto of = [&](int c) __attribute__((always_inline)) {
                return output(a_, m, w_, panel_ + c, load(sums_[turn_][tile][c] + r * LANES));
            };
            if constexpr (Finish::PAIRS) {
                finish_(m, panel_ * LANES, of(0), of(1));
            } else {
                finish_(m, panel_ * LANES, of(0));
                if (panels_ > 1) finish_(m, (panel_ + 1) * LANES, of(1));
            }
        }
    }

    const A& a_;
    const Weight& w_;
    Finish& finish_;
    Registers registers_;
    alignas(LINE) Sums sums_[2];
    bool turn_ = false;  // which of them are being finished
    // Their rows, of which so many are done; the first tile's height; their panels.
    long begin_ = 0, rows_ = 0, done_ = 0, height_ = 0, panel_ = 0, panels_ = 0;
};

#else

template <class A, class Finish> struct Batch {
    Batch(const A&, const Weight&, Finish&) {}
    template <int C> void multiply(long, long, const Weight&, long, long) {}
    void finish_rest() {}
};

#endif

}  // namespace phx::amx
