// The best of a head's outputs for few rows, without most of the head.
//
// A copy in 4 or 8 bits tells within which limits each output lies: |x·w - q·c| <= |x| |w - c| + |x - q| |c| of a row x, weights
// w and what both are rounded to, q and c (Cauchy-Schwarz), for each of a few parts of the inputs. The output that the copy
// has as the best is computed; others whose upper limit is below it cannot be the best, and what cannot be is not computed.
// The rest is computed as a whole product would, so that the result is the same to the bit.
//
// Limits are the closer the fewer inputs both lengths are spread over, so rows may be turned first, as the copy's weights
// were: inputs go from where the head's rows differ most to where they hardly do, which is where a model's hidden states
// are longest. What all rows have in common tells none from another, and is one product apart.
#pragma once

#include "best.h"
#include "input.h"
#include "stage.h"

namespace phx {

class Screen {
  public:
    Screen(const PhxScreen& screen, const Weight* head, const PhxShape& shape, int threads)
        : s_(screen), head_(head), shape_(shape), stride_(round_up(shape.vocab, LANES)),
          width_(s_.copy != nullptr ? round_up(s_.copy->depth + 1, LINE) : 0), near_(threads), probe_(threads), computed_(threads),
          most_(there() ? FEW_ROWS * stride_ : 0), turned_(there() ? FEW_ROWS * width_ : 0) {
        for (int thread = 0; there() && thread < threads; ++thread) {
            rows_.emplace_back(FEW_ROWS * round_up(shape.hidden, LANES));
            inputs_.emplace_back(FEW_ROWS, s_.copy->depth);
        }
    }

    // Before threads come to a step of so many rows: whether they may `look`.
    bool expect(const PhxDraw* draws, long rows) {
        if (!there() || rows > FEW_ROWS || !pays(rows)) return false;
        near_.expect(draws, nullptr, rows), probe_.expect(draws, nullptr, rows);
        return true;
    }

    // Where row m is put, normed, before `look`.
    float* row(int thread, long m) { return rows_[thread].get() + m * round_up(shape_.hidden, LANES); }

    // Calls compute(panel, finish) for those panels of the head that have the rows' best outputs for `best`, in ascending
    // order on each thread, and for a few others, with another `finish`.
    template <class Compute> void look(Team& team, int thread, long rows, const KeepBest& best, Compute compute) {
        Row about[FEW_ROWS];
        for (long m = 0; m < rows; ++m) as_read(row(thread, m));
        if (s_.turn != nullptr) {
            turn(team, thread, rows);
            team.barrier();
        }
        for (long m = 0; m < rows; ++m) about[m] = put(thread, m, rows);
        const KeepBest near = near_.keep(thread, shape_.token_keys, shape_.vocab);
        inputs_[thread].product(team, thread, rows, *s_.copy, Limits{near, about, s_, most_.get(), stride_});
        team.barrier();

        float limits[FEW_ROWS];
        const KeepBest probe = probe_.keep(thread, shape_.token_keys, shape_.vocab);
        long last = -1;
        near_.merge([&](long, float, int32_t column) {
            if (column / LANES != last) compute(last = column / LANES, probe);
        });
        for (long m = 0; m < rows; ++m) limits[m] = std::nextafter(probe.values[m], NO_LOGIT);

        constexpr long SOME = 64;
        const auto possible = [&](long panel) {
            const long n = panel * LANES;
            for (long m = 0; m < rows; ++m) {
                if (near.above(limits[m], m, n, load(most_.get() + m * stride_ + n))) return true;
            }
            return false;
        };
        computed_[thread] = 0;
        for (long first; (first = team.claim(SOME)) < s_.copy->panels;) {
            for (long n = first; n < std::min(first + SOME, s_.copy->panels); ++n) {
                if (possible(n)) compute(n, best), ++computed_[thread];
            }
        }
    }

    // After a step of so many rows, when all threads have met.
    void learn(long rows) {
        long computed = 0;
        for (long count : computed_) computed += count;
        float& share = shares_[rows - 1];
        share += (float(computed) / float(s_.copy->panels) - share) / 4;
    }

  private:
    static constexpr float ROUNDED_UP = 1 + 1e-5f;

    // What of a row its limits depend on: `reach` for each part, and `off`, the same for all outputs. `common` is its
    // product with what all weights have in common.
    struct Row {
        float common = 0, off = 0, reach[SCREEN_PARTS];
    };

    struct Limits {
        static constexpr bool PAIRS = false;
        KeepBest near;
        const Row* about;
        const PhxScreen& s;
        float* most;
        long stride;
        PHX_INLINE void operator()(long m, long n, F32 x) const {
            const Row& row = about[m];
            F32 margin = set1(row.off);
            for (int part = 0; part < SCREEN_PARTS; ++part) {
                margin = fma(set1(row.reach[part]), load(s.lost + part * stride + n), margin);
            }
            x = add(x, set1(row.common));
            store(most + m * stride + n, add(x, margin));
            near(m, n, x);
        }
    };

    bool there() const { return s_.copy != nullptr; }

    // Whether so many rows have of late computed so little of the head that the copy was worth reading; now and then it is
    // tried again.
    bool pays(long rows) {
        constexpr int AGAIN = 64;
        const float with = float(s_.copy->bytes()) + shares_[rows - 1] * float(head_->bytes());
        return with < float(head_->bytes()) || ++left_out_ % AGAIN == 0;
    }

    // A row as products with the head read it.
    void as_read(float* x) const {
        const long size = shape_.hidden;
        std::fill(x + size, x + round_up(size, LANES), 0.0f);
        if (head_->format == Format::BFloat16) {
            for (long i = 0; i < size; i += LANES) {
                Kept<bf16> kept[LANES];
                keep(kept, load(x + i), bf16{});
                for (long k = 0; k < LANES; ++k) x[i + k] = widen(kept[k]);
            }
        } else if (head_->format == Format::Int8) {
            for (long i = 0; i < size; i += GROUP) {
                const RoundedGroup group(x + i, size - i);
                for (long k = 0; k < std::min(GROUP, size - i); k += LANES) store(x + i + k, group.values(k / LANES));
            }
        }
    }

    // A thread's share of the turned rows.
    void turn(Team& team, int thread, long rows) {
        const long outputs = s_.copy->inputs + 1, width = round_up(shape_.hidden, LANES);
        const long end = outputs * (thread + 1) / team.size();
        for (long n = outputs * thread / team.size(); n < end; ++n) {
            const float* weights = s_.turn + n * width;
            for (long m = 0; m < rows; ++m) {
                const float* x = row(thread, m);
                F32 total = zero();
                for (long k = 0; k < width; k += LANES) total = fma(load(x + k), load(weights + k), total);
                turned_.get()[m * width_ + n] = sum(total);
            }
        }
    }

    // Row m as input of the copy.
    Row put(int thread, long m, long rows) {
        const float slack = float(shape_.hidden) * 0x1p-22f;  // of sums in float32, as part of the lengths multiplied
        const bool turned = s_.turn != nullptr;
        const float* x = turned ? turned_.get() + m * width_ : row(thread, m);
        const long size = turned ? s_.copy->inputs : shape_.hidden;
        inputs_[thread].put(*s_.copy, m, rows, x, size);
        Row about;
        float lengths[SCREEN_PARTS], off[SCREEN_PARTS], all = 0;
        for (long part = 0, k = 0; part < SCREEN_PARTS; ++part) {
            F32 squares = zero(), lost = zero();
            for (; k < s_.ends[part]; k += GROUP) {
                const RoundedGroup group(x + k, size - k);
                for (int half = 0; half < 2; ++half) {
                    const F32 v = group.source[half], change = sub(v, group.values(half));
                    squares = fma(v, v, squares), lost = fma(change, change, lost);
                }
            }
            all += sum(squares), lengths[part] = std::sqrt(sum(squares)) * ROUNDED_UP, off[part] = std::sqrt(sum(lost));
        }
        const float length = std::sqrt(all) * ROUNDED_UP;
        for (int part = 0; part < SCREEN_PARTS; ++part) {
            about.reach[part] = lengths[part] + (s_.kept[part] + 1) * (off[part] * ROUNDED_UP + slack * length);
        }
        if (turned) {
            about.common = x[s_.copy->inputs];
            about.off = slack * (length * s_.common + std::fabs(about.common));
        }
        return about;
    }

    const PhxScreen s_;
    const Weight* head_;
    const PhxShape shape_;
    const long stride_, width_;
    std::vector<Buffer<float>> rows_;   // by thread: [FEW_ROWS, hidden]
    std::vector<Input> inputs_;         // by thread: of the copy
    Best near_, probe_;                 // as the copy has outputs; of those that are computed first
    std::vector<long> computed_;        // by thread: panels of this step
    float shares_[FEW_ROWS] = {};       // of the head that steps of so many rows computed of late
    long left_out_ = 0;
    Buffer<float> most_;                // what outputs are at the most: [FEW_ROWS, stride]
    Buffer<float> turned_;              // [FEW_ROWS, width]
};

}  // namespace phx
