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

constexpr int TILE_PANELS = 2;
// Up to here the time of a product is that of reading its weights; one tile has them all.
constexpr long FEW_ROWS = std::min(4, TILE_ROWS_INT);
static_assert(amx::FEWEST_ROWS > FEW_ROWS, "few rows are read as they lie without matrix registers");
constexpr long BLOCK_BYTES = 384 << 10;     // activations that stay in the second-level cache beside the weights

// R rows by C panels, kept in registers from the first input to the last.
template <int R, int C, class T>
PHX_INLINE void tile(const Rows<T>& a, long m, const Weight& w, long n, Ahead ahead, Sum<T> (&acc)[R][C]) {
    constexpr long P = PAIR<T>;
    const T* panel = reinterpret_cast<const T*>(w.panel(n));
    const long stride = w.panel_bytes() / long(sizeof(T)), steps = w.depth / P;
    const T* rows = a.data + m * a.depth;
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = no_sum<T>();
    for (long k = 0; k < steps; ++k, rows += R * P) {
        decltype(load_weights(panel)) weights[C];
        for (int c = 0; c < C; ++c) weights[c] = load_weights(panel + c * stride + k * LANES * P);
        ahead.fetch(k);
        for (int r = 0; r < R; ++r) {
            const auto x = spread(rows + r * P);
            for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], x, weights[c]);
        }
    }
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

// One panel for R rows, its inputs in U interleaved sums: one stream, and no sum waits for the one before.
template <int R, int U, class T, class Panel>
PHX_INLINE void stream(const T* rows, Panel panel, long steps, Sum<T> (&out)[R]) {
    constexpr long P = PAIR<T>;
    Sum<T> acc[R][U];
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) acc[r][u] = no_sum<T>();
    long k = 0;
    for (; k + U <= steps; k += U) {
        for (int u = 0; u < U; ++u) {
            const auto w = panel.next();
            for (int r = 0; r < R; ++r) acc[r][u] = dot(acc[r][u], spread(rows + ((k + u) * R + r) * P), w);
        }
    }
    for (; k < steps; ++k) {
        const auto w = panel.next();
        for (int r = 0; r < R; ++r) acc[r][0] = dot(acc[r][0], spread(rows + (k * R + r) * P), w);
    }
    for (int r = 0; r < R; ++r) {
        for (int width = U / 2; width > 0; width /= 2)
            for (int u = 0; u < width; ++u) acc[r][u] = add(acc[r][u], acc[r][u + width]);
        out[r] = acc[r][0];
    }
}

// The last panel's outputs, for a second one to join.
struct Held {
    static constexpr bool PAIRS = false;
    F32 first[FEW_ROWS], last[FEW_ROWS];
    PHX_INLINE void operator()(long m, long, F32 x) { last[m] = x; }
};

template <int R, class T> PHX_INLINE void stream_panel(const Rows<T>& a, const Weight& w, long n, Sum<T> (&out)[R]) {
    constexpr int U = R == 1 ? 8 : 4;
    const long steps = w.depth / PAIR<T>;
    if constexpr (std::is_same_v<T, bf16>) {
        if (w.sparse()) {
            stream<R, U>(a.data, SparsePanel(w, n), steps, out);
        } else {
            stream<R, U>(a.data, DensePanel<T>(w, n), steps, out);
        }
    } else {
        stream<R, U>(a.data, DensePanel<T>(w, n), steps, out);
    }
}

// R rows by C panels of 8 or 4 bits: exact sums over the 32 inputs of a group, then in float32
// acc + sums · scales, and the offsets' share (as in llama.cpp's blocks).
template <int R, int C, bool FOUR_BITS, bool OFFSETS>
PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, Ahead ahead, F32 (&acc)[R][C]) {
    constexpr long BYTES = GROUP * LANES / (FOUR_BITS ? 2 : 1), QUAD = 4;
    const long groups = a.groups(), stride = w.panel_bytes(), table_stride = groups * LANES;
    const char* panel = w.panel(n);
    const f16 *scales = w.scales + n * table_stride, *offsets = OFFSETS ? w.offsets + n * table_stride : nullptr;
    const int8_t* codes = a.codes + m * a.depth;
    const float *own = a.scales + m * groups, *weighted = a.weighted + m * groups;
    const int32_t* starts = a.starts + m * groups;
    F32 sums[C][R];
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < R; ++r) sums[c][r] = zero();
    for (long g = 0; g < groups; ++g) {
        I32 exact[C][R];
        for (int r = 0; r < R; ++r) {
            const I32 start = OFFSETS ? set1(int32_t(0)) : set1(starts[r]);
            for (int c = 0; c < C; ++c) exact[c][r] = start;
        }
        const auto four_inputs = [&](const I32(&weights)[C], const int8_t* from) __attribute__((always_inline)) {
            for (int r = 0; r < R; ++r) {
                int32_t quadruple;
                std::memcpy(&quadruple, from + r * QUAD, QUAD);
                const I32 x = set1(quadruple);
                for (int c = 0; c < C; ++c) exact[c][r] = dot_u8s8(exact[c][r], weights[c], x);
            }
        };
#pragma GCC unroll 8
        for (long line = 0; line < BYTES / LINE; ++line) {
            I32 stored[C];
            for (int c = 0; c < C; ++c) stored[c] = load(reinterpret_cast<const int32_t*>(panel + c * stride + line * LINE));
            ahead.fetch(g * (BYTES / LINE) + line);
            if constexpr (FOUR_BITS) {
                I32 low[C], high[C];
                for (int c = 0; c < C; ++c) low[c] = low_nibbles(stored[c]), high[c] = high_nibbles(stored[c]);
                four_inputs(low, codes + 2 * line * R * QUAD);
                four_inputs(high, codes + (2 * line + 1) * R * QUAD);
            } else {
                four_inputs(stored, codes + line * R * QUAD);
            }
        }
        for (int c = 0; c < C; ++c) {
            const F32 scale = load_f16(scales + c * table_stride);
            for (int r = 0; r < R; ++r) sums[c][r] = fma(mul(scale, set1(own[r])), to_float(exact[c][r]), sums[c][r]);
            if constexpr (OFFSETS) {
                const F32 offset = load_f16(offsets + c * table_stride);
                for (int r = 0; r < R; ++r) sums[c][r] = fma(offset, set1(weighted[r]), sums[c][r]);
                if (c + 1 == C) offsets += LANES;
            }
        }
        panel += BYTES, scales += LANES;
        codes += R * GROUP, own += R, weighted += R, starts += R;
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = sums[c][r];
}

template <int R, int C>
PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, Ahead ahead, F32 (&acc)[R][C]) {
    if (w.format == Format::Int8) {
        tile<R, C, false, false>(a, m, w, n, ahead, acc);
    } else if (w.offsets == nullptr) {
        tile<R, C, true, false>(a, m, w, n, ahead, acc);
    } else {
        tile<R, C, true, true>(a, m, w, n, ahead, acc);
    }
}

// The processor works on several groups at once by itself: one panel after the other is the best order to read in.
template <int R> PHX_INLINE void stream_panel(const QuantisedRows& a, const Weight& w, long n, F32 (&out)[R]) {
    F32 sums[R][1];
    tile<R, 1>(a, 0, w, n, {w.panel(n) + AHEAD, 1}, sums);
    for (int r = 0; r < R; ++r) out[r] = sums[r][0];
}

// ---- what both have in common: sharing out panels, and tiles of rows ----

template <class T> long row_bytes(const Rows<T>& a) { return a.depth * long(sizeof(T)); }
inline long row_bytes(const QuantisedRows& a) { return a.depth; }
template <class A> using SumOf = std::conditional_t<std::is_same_v<A, TokenRows>, I32, F32>;
template <class A> constexpr int MOST_ROWS = TILE_ROWS;
template <> constexpr int MOST_ROWS<QuantisedRows> = TILE_ROWS_INT;

template <int R, int C, class A, class Finish>
void finish_tile(const A& a, long m, long rows, const Weight& w, long n, const Ahead& ahead, Finish& finish) {
    if (rows < R) {
        if constexpr (R > 1) finish_tile<R - 1, C>(a, m, rows, w, n, ahead, finish);
        return;
    }
    SumOf<A> acc[R][C];
    tile<R, C>(a, m, w, n, ahead, acc);
    for (int r = 0; r < R; ++r) {
        if constexpr (Finish::PAIRS) {
            finish(m + r, n * LANES, output(a, m + r, w, n, acc[r][0]), output(a, m + r, w, n + C - 1, acc[r][C - 1]));
        } else {
            for (int c = 0; c < C; ++c) finish(m + r, (n + c) * LANES, output(a, m + r, w, n + c, acc[r][c]));
        }
    }
}

// A thread's part of a product, tile after tile in vector registers.
template <class A, class Finish> class Batch {
  public:
    Batch(const A& a, const Weight&, Finish& finish) : a_(a), finish_(finish) {}

    // The first tile to the last of a block of rows against C panels of w from n on. `next` are the panels that come after
    // these, or -1: the first tiles fetch them, so that memory and arithmetic are busy at the same time.
    template <int C> void multiply(long first, long last, const Weight& w, long n, long next) {
        const long panels = next < 0 ? 0 : std::min<long>(C, w.panels - next), lines = last - first < panels ? panels : 1;
        if (w.grouped()) w.prefetch_tables(next, panels);
        for (long t = first; t < last; ++t) {
            const long panel = (t - first) * lines;
            const Ahead ahead = panel < panels ? Ahead{w.panel(next + panel), lines} : Ahead{};
            finish_tile<MOST_ROWS<A>, C>(a_, a_.tiles.begin(t), a_.tiles.height(t), w, n, ahead, finish_);
        }
    }
    void finish_rest() {}

  private:
    const A& a_;
    Finish& finish_;
};

template <int R, class A, class Finish> PHX_INLINE void finish_panel(const A& a, const Weight& w, long n, Finish& finish) {
    SumOf<A> sums[R];
    stream_panel<R>(a, w, n, sums);
    for (int r = 0; r < R; ++r) finish(r, n * LANES, output(a, r, w, n, sums[r]));
}

template <class A, class Finish> void stream_panels(const A& a, long rows, const Weight& w, long n, Finish& finish) {
    switch (rows) {
        case 1: finish_panel<1>(a, w, n, finish); break;
        case 2: finish_panel<2>(a, w, n, finish); break;
        case 3: finish_panel<std::min<int>(3, FEW_ROWS)>(a, w, n, finish); break;
        default: finish_panel<FEW_ROWS>(a, w, n, finish); break;
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

template <class A, class Finish>
void product_of_few(Team& team, int thread, const A& a, long rows, const Weight& w, Finish& finish) {
    const long unit = Finish::PAIRS ? 2 : 1;
    const Pieces pieces(w.panels / unit, team.size());
    for (long piece = thread; pieces.begin(piece) < pieces.count; piece = team.size() + team.claim(1)) {
        for (long n = pieces.begin(piece) * unit; n < pieces.begin(piece + 1) * unit; n += unit) {
            if constexpr (Finish::PAIRS) {
                Held held;
                stream_panels(a, rows, w, n, held);
                for (long r = 0; r < rows; ++r) held.first[r] = held.last[r];
                stream_panels(a, rows, w, n + 1, held);
                for (long r = 0; r < rows; ++r) finish(r, n * LANES, held.first[r], held.last[r]);
            } else {
                stream_panels(a, rows, w, n, finish);
            }
        }
    }
}

// A panel and the next are the two halves of a gated layer, so they have to meet: PAIRS.
template <bool PAIRS, class A, class Part> void share_out(Team& team, int thread, const A& a, const Weight& w, Part part) {
    const long most = std::max<long>(1, BLOCK_BYTES / (row_bytes(a) * a.tiles.height(0)));
    const long blocks = (a.tiles.count + most - 1) / most, pairs = (w.panels + TILE_PANELS - 1) / TILE_PANELS;
    const Pieces pieces(blocks * pairs, team.size());
    for (long piece = thread, following; pieces.begin(piece) < pieces.count; piece = following) {
        following = team.size() + team.claim(1);
        const long end = pieces.begin(piece + 1);
        for (long i = pieces.begin(piece); i < end; ++i) {
            const long block = i / pairs, n = i % pairs * TILE_PANELS, after = i + 1 < end ? i + 1 : pieces.begin(following);
            const long first = a.tiles.count * block / blocks, last = a.tiles.count * (block + 1) / blocks;
            const long next = after < pieces.count && !w.sparse() ? after % pairs * TILE_PANELS : -1;
            const auto multiply = [&](auto count) {
                part.template multiply<count>(first, last, w.sparse() ? dense_panels(w, n, count) : w, n, next);
            };
            if (n + TILE_PANELS <= w.panels) {
                multiply(std::integral_constant<int, TILE_PANELS>());
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
