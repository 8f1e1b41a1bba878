// Products of activations and packed weights: out[m, n] = sum over k of a[m, k] * w[n, k].
//
// Every thread of the team calls a product; they share its panels out among themselves, a long piece for each first.
// What becomes of a finished tile is the caller's (finish.h): `finish(row, column, F32)` gets 16 outputs of one row, or
// those of a panel and the next where they are PAIRS.
#pragma once

#include <algorithm>
#include <type_traits>

#include "ahead.h"
#include "gemm_amx.h"
#include "rows.h"
#include "sparse.h"
#include "team.h"

namespace phx {

constexpr int SHARED_PANELS = 2;  // that a thread takes at once
// Up to here the time of a product is that of reading its weights; one tile has them all.
constexpr long FEW_ROWS = 4;
static_assert(amx::FEWEST_ROWS > FEW_ROWS, "few rows are read as they lie without matrix registers");
constexpr long BLOCK_BYTES = 384 << 10;     // activations that stay in the second-level cache beside the weights

// R rows by C panels, kept in registers from the first input to the last.
template <int R, int C, class T>
PHX_INLINE void tile(const Rows<T>& a, long m, const Weight& w, long n, Ahead ahead, Sum<T> (&acc)[R][C]) {
    constexpr long P = PAIR<T>;
    const T* panel = reinterpret_cast<const T*>(w.panel(n));
    const long stride = w.panel_bytes() / long(sizeof(T)), steps = w.depth / P;
    const Kept<T>* rows = a.data + m * a.depth;
    Sum<T> sums[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sums[r][c] = no_sum<T>();
    for (long k = 0; k < steps; ++k, rows += R * P) {
        const T* weights[C];
        for (int c = 0; c < C; ++c) weights[c] = panel + c * stride + k * LANES * P;
        ahead.fetch(k);
        multiply<T>(rows, P, weights, sums);
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = sums[r][c];
}

// The vectors of a dense panel, one after the other.
template <class T> class DensePanel {
  public:
    DensePanel(const Weight& w, long n) : at_(reinterpret_cast<const T*>(w.panel(n))) {}
    PHX_INLINE auto next() {
        prefetch(reinterpret_cast<const char*>(at_) + AHEAD);
        const auto vector = load_weights(at_);
        at_ += LANES * PAIR<T>;
        return vector;
    }

  private:
    const T* at_;
};

// C panels for R rows.
template <class T, int R, int C, class Panel>
PHX_INLINE void stream(const Kept<T>* rows, Panel (&panels)[C], long steps, Sum<T> (&out)[R][C]) {
    constexpr long P = PAIR<T>;
    constexpr int U = TURNS<R>;
    Sum<T> acc[U][R][C];
    for (int u = 0; u < U; ++u)
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) acc[u][r][c] = no_sum<T>();
    const auto step = [&](long k, int u) __attribute__((always_inline)) {
        Vector<T> weights[C];
        for (int c = 0; c < C; ++c) weights[c] = panels[c].next();
        multiply<T>(rows + k * R * P, P, weights, acc[u]);
    };
    long k = 0;
    for (; k + U <= steps; k += U) {
        for (int u = 0; u < U; ++u) step(k + u, u);
    }
    for (; k < steps; ++k) step(k, 0);
    for (int r = 0; r < R; ++r) {
        for (int c = 0; c < C; ++c) {
            for (int width = U / 2; width > 0; width /= 2)
                for (int u = 0; u < width; ++u) acc[u][r][c] = add(acc[u][r][c], acc[u + width][r][c]);
            out[r][c] = acc[0][r][c];
        }
    }
}

// C panels of this kind, from n on.
template <class Panel, class T, int R, int C>
PHX_INLINE void stream_panels_as(const Rows<T>& a, const Weight& w, long n, Sum<T> (&out)[R][C]) {
    if constexpr (C == 1) {
        Panel panels[] = {{w, n}};
        stream<T>(a.data, panels, w.depth / PAIR<T>, out);
    } else {
        static_assert(C == 2);
        Panel panels[] = {{w, n}, {w, n + 1}};
        stream<T>(a.data, panels, w.depth / PAIR<T>, out);
    }
}

template <int R, int C, class T> PHX_INLINE void stream_panels(const Rows<T>& a, const Weight& w, long n, Sum<T> (&out)[R][C]) {
    if constexpr (std::is_same_v<T, bf16>) {
        if (w.sparse()) return stream_panels_as<SparsePanel>(a, w, n, out);
    }
    stream_panels_as<DensePanel<T>>(a, w, n, out);
}

// R rows by C panels in groups: exact sums over the 32 inputs of a group, then in float32
// acc + sums · scales, and the offsets' share (as in llama.cpp's blocks).
template <int R, int C, bool OFFSETS, int BITS>
PHX_INLINE void tile(const GroupRows<BITS>& a, long m, const Weight& w, long n, Ahead ahead, F32 (&acc)[R][C]) {
    constexpr long BYTES = GROUP * LANES * BITS / 8, QUAD = 4;
    const long groups = a.groups(), stride = w.panel_bytes(), table_stride = groups * LANES;
    const char* panel = w.panel(n);
    const f16 *scales = w.scales + n * table_stride, *offsets = OFFSETS ? w.offsets + n * table_stride : nullptr;
    const Codes<BITS>* codes = a.codes + m * a.depth;
    const float *own = a.scales + m * groups, *weighted = a.weighted + m * groups;
    const int32_t* starts = a.starts + m * groups;
    F32 sums[R][C];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) sums[r][c] = zero();
    for (long g = 0; g < groups; ++g) {
        I32 exact[R][C];
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c) exact[r][c] = set1(int32_t(0));
#pragma GCC unroll LINES_AT_ONCE
        for (long line = 0; line < BYTES / LINE; ++line) {
            I32 stored[C];
            for (int c = 0; c < C; ++c) stored[c] = load(reinterpret_cast<const int32_t*>(panel + c * stride + line * LINE));
            ahead.fetch(g * (BYTES / LINE) + line);
            if constexpr (BITS == 4) {
                I32 low[C], high[C];
                for (int c = 0; c < C; ++c) low[c] = low_nibbles(stored[c]), high[c] = high_nibbles(stored[c]);
                multiply_codes<BITS>(codes + 2 * line * R * QUAD, QUAD, low, exact);
                multiply_codes<BITS>(codes + (2 * line + 1) * R * QUAD, QUAD, high, exact);
            } else {
                multiply_codes<BITS>(codes + line * R * QUAD, QUAD, stored, exact);
            }
        }
        for (int c = 0; c < C; ++c) {
            const F32 scale = load_f16(scales + c * table_stride);
            for (int r = 0; r < R; ++r) {
                I32 total = sums_of_group<BITS>(exact[r][c]);
                if constexpr (!OFFSETS) total = add(total, set1(starts[r]));
                sums[r][c] = fma(mul(scale, set1(own[r])), to_float(total), sums[r][c]);
            }
            if constexpr (OFFSETS) {
                const F32 offset = load_f16(offsets + c * table_stride);
                for (int r = 0; r < R; ++r) sums[r][c] = fma(offset, set1(weighted[r]), sums[r][c]);
                if (c + 1 == C) offsets += LANES;
            }
        }
        panel += BYTES, scales += LANES;
        codes += R * GROUP, own += R, weighted += R, starts += R;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = sums[r][c];
}

template <int R, int C, int BITS>
PHX_INLINE void tile(const GroupRows<BITS>& a, long m, const Weight& w, long n, Ahead ahead, F32 (&acc)[R][C]) {
    if constexpr (BITS == 4) {
        if (w.offsets != nullptr) return tile<R, C, true>(a, m, w, n, ahead, acc);
    }
    tile<R, C, false>(a, m, w, n, ahead, acc);
}

// The processor works on several groups at once by itself.
template <int R, int C, int BITS>
PHX_INLINE void stream_panels(const GroupRows<BITS>& a, const Weight& w, long n, F32 (&out)[R][C]) {
    tile<R, C>(a, 0, w, n, {w.panel(n) + AHEAD, 1}, out);
}

// ---- what both have in common: sharing out panels, and tiles of rows ----

template <class A> long row_bytes(const A& a) { return a.depth * long(sizeof(typename A::Value)); }
template <class A> using SumOf = std::conditional_t<std::is_same_v<A, TokenRows>, I32, F32>;

// The sums of C panels, of which work(c, sums) finds those of one.
template <class S, int R, int C, class Work> PHX_INLINE void one_by_one(S (&acc)[R][C], const Work& work) {
#pragma GCC unroll 1
    for (int c = 0; c < C; ++c) {
        S one[R][1];
        work(c, one);
        for (int r = 0; r < R; ++r) acc[r][c] = one[r][0];
    }
}

// As many panels at a time as registers have room for.
template <class A, class S, int R, int C>
PHX_APART void tile_panels(const A& a, long m, const Weight& w, long n, const Ahead& ahead, S (&acc)[R][C]) {
    if constexpr (C <= TILE_PANELS) {
        tile<R, C>(a, m, w, n, ahead, acc);
    } else {
        one_by_one(acc, [&](int c, S(&one)[R][1]) __attribute__((always_inline)) {
            tile<R, 1>(a, m, w, n + c, {ahead.at + c * w.panel_bytes(), std::min(ahead.lines, 1l)}, one);
        });
    }
}

// R rows from m on and C panels from n on have these sums.
template <class A, class Finish, class S, int R, int C>
PHX_INLINE void finish_rows(const A& a, long m, const Weight& w, long n, const S (&acc)[R][C], Finish& finish) {
    for (int r = 0; r < R; ++r) {
        if constexpr (Finish::PAIRS) {
            finish(m + r, n * LANES, output(a, m + r, w, n, acc[r][0]), output(a, m + r, w, n + C - 1, acc[r][C - 1]));
        } else {
            for (int c = 0; c < C; ++c) finish(m + r, (n + c) * LANES, output(a, m + r, w, n + c, acc[r][c]));
        }
    }
}

template <int R, int C, class A, class Finish>
void finish_tile(const A& a, long m, long rows, const Weight& w, long n, const Ahead& ahead, Finish& finish) {
    if (rows < R) {
        if constexpr (R > 1) finish_tile<R - 1, C>(a, m, rows, w, n, ahead, finish);
        return;
    }
    SumOf<A> acc[R][C];
    tile_panels(a, m, w, n, ahead, acc);
    finish_rows(a, m, w, n, acc, finish);
}

// A thread's part of a product, tile after tile in vector registers.
template <class A, class Finish> class Batch {
  public:
    Batch(const A& a, const Weight&, Finish& finish) : a_(a), finish_(finish) {}

    // The first tile to the last of a block of rows against C panels of w from n on. `next` are the panels that come after
    // these, or -1: the first tiles fetch them, so that memory and arithmetic are busy at the same time.
    template <int C> void multiply(long first, long last, const Weight& w, long n, long next) {
        const long panels = next < 0 ? 0 : std::min<long>(C, w.panels - next);
        const long lines = C > TILE_PANELS || last - first < panels ? panels : 1;
        if (w.grouped()) w.prefetch_tables(next, panels);
        for (long t = first; t < last; ++t) {
            const long panel = (t - first) * lines;
            const Ahead ahead = panel < panels ? Ahead{w.panel(next + panel), lines} : Ahead{w.panel(n), 0};
            finish_tile<A::MOST, C>(a_, a_.tiles.begin(t), a_.tiles.height(t), w, n, ahead, finish_);
        }
    }
    void finish_rest() {}

  private:
    const A& a_;
    Finish& finish_;
};

// As many panels at a time as it is quick to read at once.
template <class A, class S, int R, int C> PHX_APART void panels_of_few(const A& a, const Weight& w, long n, S (&acc)[R][C]) {
    if constexpr (C <= A::template STREAMS<R>) {
        stream_panels<R, C>(a, w, n, acc);
    } else {
        one_by_one(acc, [&](int c, S(&one)[R][1]) __attribute__((always_inline)) { stream_panels<R, 1>(a, w, n + c, one); });
    }
}

// Panels n to `end` - 1, of which there is an even number where they are PAIRS.
template <int R, class A, class Finish>
void finish_panels(const A& a, const Weight& w, long n, long end, Finish& finish) {
    const auto some = [&](auto count) {
        SumOf<A> acc[R][count];
        panels_of_few(a, w, n, acc);
        finish_rows(a, 0, w, n, acc, finish);
        n += count;
    };
    if constexpr (Finish::PAIRS || A::template STREAMS<R> == 2) {
        while (n + 2 <= end) some(std::integral_constant<int, 2>());
    }
    if constexpr (!Finish::PAIRS) {
        while (n < end) some(std::integral_constant<int, 1>());
    }
}

// Work for threads that take it piece by piece: a long piece each, for long streams, then short ones, so that a thread
// that was held up does not hold the others up.
struct Pieces {
    long count, threads, lengthy, brief;
    Pieces(long count, long threads) : count(count), threads(threads), lengthy(count * 3 / (4 * threads)) {
        brief = std::max<long>(1, (count - lengthy * threads) / (4 * threads));
    }
    long begin(long piece) const {
        return std::min(count, piece < threads ? piece * lengthy : threads * lengthy + (piece - threads) * brief);
    }
};

// The panels of few rows from `first` to `end` - 1.
template <class A, class Finish>
void panels_of(const A& a, long rows, const Weight& w, long first, long end, Finish& finish) {
    switch (rows) {
        case 1: return finish_panels<1>(a, w, first, end, finish);
        case 2: return finish_panels<2>(a, w, first, end, finish);
        case 3: return finish_panels<3>(a, w, first, end, finish);
        default: return finish_panels<FEW_ROWS>(a, w, first, end, finish);
    }
}

template <class A, class Finish>
void product_of_few(Team& team, int thread, const A& a, long rows, const Weight& w, Finish& finish) {
    const long unit = Finish::PAIRS ? 2 : 1;
    const Pieces pieces(w.panels / unit, team.size());
    for (long piece = thread; pieces.begin(piece) < pieces.count; piece = team.size() + team.claim(1)) {
        panels_of(a, rows, w, pieces.begin(piece) * unit, pieces.begin(piece + 1) * unit, finish);
    }
}

// A panel and the next are the two halves of a gated layer, so they have to meet: PAIRS.
template <bool PAIRS, class A, class Part> void share_out(Team& team, int thread, const A& a, const Weight& w, Part part) {
    const long most = std::max<long>(1, BLOCK_BYTES / (row_bytes(a) * a.tiles.height(0)));
    const long blocks = (a.tiles.count + most - 1) / most, pairs = (w.panels + SHARED_PANELS - 1) / SHARED_PANELS;
    const Pieces pieces(blocks * pairs, team.size());
    for (long piece = thread, following; pieces.begin(piece) < pieces.count; piece = following) {
        following = team.size() + team.claim(1);
        const long end = pieces.begin(piece + 1);
        for (long i = pieces.begin(piece); i < end; ++i) {
            const long block = i / pairs, n = i % pairs * SHARED_PANELS, after = i + 1 < end ? i + 1 : pieces.begin(following);
            const long first = a.tiles.count * block / blocks, last = a.tiles.count * (block + 1) / blocks;
            const long next = after < pieces.count && !w.sparse() ? after % pairs * SHARED_PANELS : -1;
            const auto multiply = [&](auto count) {
                part.template multiply<count>(first, last, w.sparse() ? dense_panels(w, n, count) : w, n, next);
            };
            if (n + SHARED_PANELS <= w.panels) {
                multiply(std::integral_constant<int, SHARED_PANELS>());
            } else if constexpr (!PAIRS) {
                multiply(std::integral_constant<int, 1>());
            }
        }
    }
    part.finish_rest();
}

template <class A, class Finish>
void product(Team& team, int thread, const A& a, long rows, const Weight& w, Finish finish) {
    if (rows <= FEW_ROWS) return product_of_few(team, thread, a, rows, w, finish);
    if constexpr (std::is_same_v<A, Rows<bf16>> || std::is_same_v<A, TokenRows>) {
        if (a.lined) return share_out<Finish::PAIRS>(team, thread, a, w, amx::Batch<A, Finish>(a, w, finish));
    }
    share_out<Finish::PAIRS>(team, thread, a, w, Batch<A, Finish>(a, w, finish));
}

}  // namespace phx
