// The best of a head's outputs for few rows, without most of the head.
//
// A copy in 8 bits tells within which limits each output lies: |x·w - q·c| <= |x| |w - c| + |x - q| |c| of a row x, weights w
// and what both are rounded to, q and c (Cauchy-Schwarz). Outputs whose upper limit is below another's lower limit cannot
// be the best, and what cannot be is not computed. The rest is computed as a whole product would, so that the result is
// the same to the bit.
#pragma once

#include "best.h"
#include "input.h"
#include "stage.h"

namespace phx {

class Screen {
  public:
    // What of a row its limits depend on: its length, and how far off its roundings are.
    struct Row {
        float length, off;
    };

    // `keys` [columns] of the outputs' tokens: see draw.h.
    Screen(const PhxScreen& screen, const int32_t* keys, long columns, int threads)
        : s_(screen), keys_(keys), columns_(columns), stride_(round_up(columns, LANES)), certain_(threads),
          most_(serves(1) ? FEW_ROWS * stride_ : 0) {}

    bool serves(long rows) const { return s_.copy != nullptr && rows <= FEW_ROWS; }

    void expect(const PhxDraw* draws, long rows) { certain_.expect(draws, nullptr, rows); }

    // Row m of `rows` floats, in the copy's form. `rounding` is the largest relative error of a float where the head itself
    // reads it.
    Row put(const Input& in, long m, long rows, const float* x, long size, float rounding) const {
        const float lost = in.groups<8>(rows, s_.copy->depth).quantise(x, size, m);
        F32 squares = zero();
        for (long i = 0; i < size; i += LANES) squares = fma(load(x + i), load(x + i), squares);
        const float length = std::sqrt(sum(squares)) * ROUNDED_UP;
        // Either product adds up in float32.
        return {length, std::sqrt(lost) * ROUNDED_UP + length * (rounding + float(size) * 0x1p-22f)};
    }

    // Finds the limits of all outputs. All threads meet before `each_possible`.
    void limit(Team& team, int thread, const Input& in, long rows, const Row* about) {
        in.product(team, thread, rows, *s_.copy, Limits{certain_.keep(thread, keys_, columns_), about, s_, most_.get(), stride_});
    }

    // Calls work(panel) for those panels that may have a row's best output, in ascending order on each thread.
    template <class Work> void each_possible(Team& team, long rows, Work work) {
        constexpr long SOME = 64;
        float limits[FEW_ROWS];
        certain_.merge([&](long m, float score, int32_t) { limits[m] = std::nextafter(score, NO_LOGIT); });
        const KeepBest scores = certain_.keep(0, keys_, columns_);
        const auto possible = [&](long panel) {
            const long n = panel * LANES;
            for (long m = 0; m < rows; ++m) {
                if (scores.above(limits[m], m, n, load(most_.get() + m * stride_ + n))) return true;
            }
            return false;
        };
        for (long first; (first = team.claim(SOME)) < s_.copy->panels;) {
            for (long n = first; n < std::min(first + SOME, s_.copy->panels); ++n) {
                if (possible(n)) work(n);
            }
        }
    }

  private:
    static constexpr float ROUNDED_UP = 1 + 1e-5f;

    struct Limits {
        static constexpr bool PAIRS = false;
        KeepBest certain;
        const Row* about;
        const PhxScreen& s;
        float* most;
        long stride;
        PHX_INLINE void operator()(long m, long n, F32 x) const {
            const F32 off = mul(set1(about[m].off), load(s.length + n));
            const F32 margin = fma(set1(about[m].length), load(s.lost + n), off);
            store(most + m * stride + n, add(x, margin));
            certain(m, n, sub(x, margin));
        }
    };
    const PhxScreen s_;
    const int32_t* keys_;
    const long columns_, stride_;
    Best certain_;        // scores that are reached at least
    Buffer<float> most_;  // what outputs are at the most: [FEW_ROWS, stride]
};

}  // namespace phx
