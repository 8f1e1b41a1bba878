// Products of activations and packed weights: out[m, n] = sum over k of a[m, k] * w[n, k].
//
// Every thread of the team calls a product; they share its panels out among themselves. What becomes of a finished
// tile is the caller's: `finish(row, column, F32)` gets 16 outputs of one row, `finish_pair` a panel and the next.
#pragma once

#include <algorithm>
#include <type_traits>

#include "team.h"
#include "weight.h"

namespace phx {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12, TILE_ROWS_INT = 6, TILE_PANELS = 2;
#else
constexpr int TILE_ROWS = 4, TILE_ROWS_INT = 2, TILE_PANELS = 2;
#endif
constexpr long FEW_ROWS = 4;                // up to here the time of a product is that of reading its weights
constexpr long AHEAD = 4096;                // bytes between what is used and what is fetched
constexpr long BLOCK_BYTES = 384 << 10;     // activations that stay in the second-level cache beside the weights

// Rows of activations: float32, bf16, or int8 with a scale (and the sum of the group's codes) a group of 32.
template <class T> struct Rows {
    const T* data;
    long stride;
    const T* row(long m) const { return data + m * stride; }
};

struct QuantisedRows {
    const int8_t* codes;   // [rows, stride]
    const float* scales;   // [rows, stride / GROUP]
    const int32_t* sums;   // [rows, stride / GROUP]: of the codes
    long stride;
    long groups() const { return stride / GROUP; }
};

// R rows by C panels, kept in registers from the first input to the last. `next` is memory to fetch meanwhile.
template <int R, int C, class T>
PHX_INLINE void tile(const Rows<T>& a, long m, const T* panel, long panel_stride, long steps, const char* next,
                     F32 (&acc)[R][C]) {
    constexpr long P = PAIR<T>;
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = zero();
    const T* row[R];
    for (int r = 0; r < R; ++r) row[r] = a.row(m + r);
    for (long k = 0; k < steps; ++k) {
        decltype(load_weights(panel)) w[C];
        for (int c = 0; c < C; ++c) w[c] = load_weights(panel + c * panel_stride + k * LANES * P);
        if (next != nullptr) prefetch(next + k * 64);
        for (int r = 0; r < R; ++r) {
            const auto x = spread(row[r] + k * P);
            for (int c = 0; c < C; ++c) acc[r][c] = dot(acc[r][c], x, w[c]);
        }
    }
}

// One panel for R rows, its inputs in U interleaved sums: one stream, and no sum waits for the one before.
template <int R, int U, class T>
PHX_INLINE void stream(const Rows<T>& a, long m, const T* panel, long steps, F32 (&out)[R]) {
    constexpr long P = PAIR<T>;
    F32 acc[R][U];
    for (int r = 0; r < R; ++r)
        for (int u = 0; u < U; ++u) acc[r][u] = zero();
    long k = 0;
    for (; k + U <= steps; k += U) {
        for (int u = 0; u < U; ++u) {
            const T* from = panel + (k + u) * LANES * P;
            prefetch(reinterpret_cast<const char*>(from) + AHEAD);
            const auto w = load_weights(from);
            for (int r = 0; r < R; ++r) acc[r][u] = dot(acc[r][u], spread(a.row(m + r) + (k + u) * P), w);
        }
    }
    for (; k < steps; ++k) {
        const auto w = load_weights(panel + k * LANES * P);
        for (int r = 0; r < R; ++r) acc[r][0] = dot(acc[r][0], spread(a.row(m + r) + k * P), w);
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

template <int R, class T, class Finish>
PHX_INLINE void stream_panel(const Rows<T>& a, const Weight& w, long n, Finish& finish) {
    F32 out[R];
    stream<R, R == 1 ? 8 : 4>(a, 0, reinterpret_cast<const T*>(w.panel(n)), w.depth / PAIR<T>, out);
    for (int r = 0; r < R; ++r) finish(r, n * LANES, out[r]);
}

// A group of 32 inputs, exactly: R rows by C panels of 8 or 4 bits. Where codes are centred (no OFFSETS),
// the sums begin with the centre's share.
template <int R, int C, bool FOUR_BITS, bool OFFSETS>
PHX_INLINE void group_sums(const QuantisedRows& a, long m, long group, const char* const (&codes)[C], bool fetching,
                           I32 (&exact)[R][C]) {
    constexpr long BYTES = GROUP * LANES / (FOUR_BITS ? 2 : 1), CENTRE = FOUR_BITS ? 8 : 128;
    for (int r = 0; r < R; ++r) {
        const int32_t start = OFFSETS ? 0 : int32_t(-CENTRE) * a.sums[(m + r) * a.groups() + group];
        for (int c = 0; c < C; ++c) exact[r][c] = set1(start);
    }
    const auto four_inputs = [&](long k, const I32(&weights)[C]) __attribute__((always_inline)) {
        for (int r = 0; r < R; ++r) {
            int32_t quadruple;
            std::memcpy(&quadruple, a.codes + (m + r) * a.stride + group * GROUP + k, 4);
            for (int c = 0; c < C; ++c) exact[r][c] = dot_u8s8(exact[r][c], weights[c], set1(quadruple));
        }
    };
    for (long line = 0; line < BYTES; line += 64) {
        I32 stored[C];
        for (int c = 0; c < C; ++c) {
            stored[c] = load(reinterpret_cast<const int32_t*>(codes[c] + line));
            if (fetching) prefetch(codes[c] + line + AHEAD);
        }
        if constexpr (FOUR_BITS) {
            I32 low[C], high[C];
            for (int c = 0; c < C; ++c) low[c] = low_nibbles(stored[c]), high[c] = high_nibbles(stored[c]);
            four_inputs(line / 8, low);
            four_inputs(line / 8 + 4, high);
        } else {
            four_inputs(line / 16, stored);
        }
    }
}

// The same in float32: acc + sums · scales, and the offsets' share (as in llama.cpp's blocks).
template <int R, bool OFFSETS>
PHX_INLINE void add_group(const QuantisedRows& a, long m, long group, const f16* scales, const f16* offsets,
                          const I32 (&exact)[R], F32 (&acc)[R]) {
    const F32 scale = load_f16(scales);
    for (int r = 0; r < R; ++r) {
        const float own = a.scales[(m + r) * a.groups() + group];
        acc[r] = fma(mul(scale, set1(own)), to_float(exact[r]), acc[r]);
    }
    if constexpr (OFFSETS) {
        const F32 offset = load_f16(offsets);
        for (int r = 0; r < R; ++r) {
            const long place = (m + r) * a.groups() + group;
            acc[r] = fma(offset, set1(a.scales[place] * float(a.sums[place])), acc[r]);
        }
    }
}

// R rows by C panels.
template <int R, int C, bool FOUR_BITS, bool OFFSETS>
PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, bool fetching, F32 (&acc)[R][C]) {
    constexpr long BYTES = GROUP * LANES / (FOUR_BITS ? 2 : 1);
    const long groups = a.groups();
    F32 sums[C][R];
    for (int c = 0; c < C; ++c)
        for (int r = 0; r < R; ++r) sums[c][r] = zero();
    for (long g = 0; g < groups; ++g) {
        const char* codes[C];
        for (int c = 0; c < C; ++c) codes[c] = w.panel(n + c) + g * BYTES;
        I32 exact[R][C];
        group_sums<R, C, FOUR_BITS, OFFSETS>(a, m, g, codes, fetching, exact);
        for (int c = 0; c < C; ++c) {
            I32 column[R];
            for (int r = 0; r < R; ++r) column[r] = exact[r][c];
            const long table = ((n + c) * groups + g) * LANES;
            add_group<R, OFFSETS>(a, m, g, w.scales + table, OFFSETS ? w.offsets + table : nullptr, column, sums[c]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = sums[c][r];
}

// Calls work<FOUR_BITS, OFFSETS> as the weight's format has it.
#define PHX_BY_FORMAT(w, call)                               \
    if ((w).format == Format::Int8) {                        \
        call(false, false);                                  \
    } else if ((w).offsets == nullptr) {                     \
        call(true, false);                                   \
    } else {                                                 \
        call(true, true);                                    \
    }

// ---- what both have in common: sharing out panels, and tiles of rows ----

template <class T> constexpr int tile_rows(const Rows<T>&) { return TILE_ROWS; }
constexpr int tile_rows(const QuantisedRows&) { return TILE_ROWS_INT; }
template <class T> long row_bytes(const Rows<T>& a) { return a.stride * long(sizeof(T)); }
inline long row_bytes(const QuantisedRows& a) { return a.stride; }

template <int R, int C, class T>
PHX_INLINE void tile(const Rows<T>& a, long m, const Weight& w, long n, long number, bool fetching, F32 (&acc)[R][C]) {
    const T* panel = reinterpret_cast<const T*>(w.panel(n));
    // The following panels come in while the first tiles use these.
    const char* next = fetching && number < C && n + C < w.panels ? w.panel(n + C + number) : nullptr;
    tile<R, C>(a, m, panel, w.panel_bytes() / long(sizeof(T)), w.depth / PAIR<T>, next, acc);
}
template <int R, int C>
PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, long number, bool fetching, F32 (&acc)[R][C]) {
    fetching = fetching && number == 0;
#define PHX_TILE(four_bits, offsets) tile<R, C, four_bits, offsets>(a, m, w, n, fetching, acc)
    PHX_BY_FORMAT(w, PHX_TILE)
#undef PHX_TILE
}
#undef PHX_BY_FORMAT

// The processor works on several groups at once by itself: one panel after the other is the best order to read in.
template <int R, class Finish>
PHX_INLINE void stream_panel(const QuantisedRows& a, const Weight& w, long n, Finish& finish) {
    F32 out[R][1];
    tile<R, 1>(a, 0, w, n, 0, true, out);
    for (int r = 0; r < R; ++r) finish(r, n * LANES, out[r][0]);
}

template <int R, int C, class A, class Finish>
void finish_tile(const A& a, long m, long rows, const Weight& w, long n, long number, bool fetching, Finish& finish) {
    if (rows < R) {
        if constexpr (R > 1) finish_tile<R - 1, C>(a, m, rows, w, n, number, fetching, finish);
        return;
    }
    F32 acc[R][C];
    tile<R, C>(a, m, w, n, number, fetching, acc);
    for (int r = 0; r < R; ++r) {
        if constexpr (Finish::PAIRS) {
            finish(m + r, n * LANES, acc[r][0], acc[r][C - 1]);
        } else {
            for (int c = 0; c < C; ++c) finish(m + r, (n + c) * LANES, acc[r][c]);
        }
    }
}

// All rows of a block against C panels, in tiles of nearly equal height.
template <int C, class A, class Finish>
void finish_block(const A& a, long first, long rows, const Weight& w, long n, Finish& finish) {
    constexpr int R = tile_rows(A{});
    const long tiles = (rows + R - 1) / R;
    for (long i = 0; i < tiles; ++i) {
        const long begin = rows * i / tiles, end = rows * (i + 1) / tiles;
        finish_tile<R, C>(a, first + begin, end - begin, w, n, i, first == 0, finish);
    }
}

template <class A, class Finish> void stream_panels(const A& a, long rows, const Weight& w, long n, Finish& finish) {
    switch (rows) {
        case 1: stream_panel<1>(a, w, n, finish); break;
        case 2: stream_panel<2>(a, w, n, finish); break;
        case 3: stream_panel<3>(a, w, n, finish); break;
        default: stream_panel<4>(a, w, n, finish); break;
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

template <class A, class Finish> void product_of_few(Team& team, const A& a, long rows, const Weight& w, Finish& finish) {
    const long unit = Finish::PAIRS ? 2 : 1;
    const Pieces pieces(w.panels / unit, team.size());
    for (long piece; pieces.begin(piece = team.claim(1)) < pieces.count;) {
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
template <class A, class Finish> void product(Team& team, const A& a, long rows, const Weight& w, Finish finish) {
    if (rows <= FEW_ROWS) return product_of_few(team, a, rows, w, finish);
    const long pairs = (w.panels + TILE_PANELS - 1) / TILE_PANELS;
    const long R = tile_rows(a);
    const long most = std::max(R, BLOCK_BYTES / row_bytes(a) / R * R);
    const long blocks = (rows + most - 1) / most;
    const long chunk = std::max<long>(1, std::min<long>(4, blocks * pairs / (8 * team.size())));
    for (long first; (first = team.claim(chunk)) < blocks * pairs;) {
        for (long i = first; i < std::min(first + chunk, blocks * pairs); ++i) {
            const long block = i / pairs, n = i % pairs * TILE_PANELS;
            const long begin = rows * block / blocks, end = rows * (block + 1) / blocks;
            if (n + TILE_PANELS <= w.panels) {
                finish_block<TILE_PANELS>(a, begin, end - begin, w, n, finish);
            } else if constexpr (!Finish::PAIRS) {
                finish_block<1>(a, begin, end - begin, w, n, finish);
            }
        }
    }
}

}  // namespace phx
