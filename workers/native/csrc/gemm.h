// Products of activations and packed weights: out[m, n] = sum over k of a[m, k] * w[n, k].
//
// Every thread of the team calls a product; they share its panels out among themselves. What becomes of a finished
// tile is the caller's: `finish(row, column, F32)` gets 16 outputs of one row, `finish_pair` a panel and the next.
#pragma once

#include <algorithm>

#include "team.h"
#include "weight.h"

namespace phx {

#if defined(__AVX512F__)
constexpr int TILE_ROWS = 12, TILE_ROWS_INT = 6, TILE_PANELS = 2;
#else
constexpr int TILE_ROWS = 4, TILE_ROWS_INT = 2, TILE_PANELS = 2;
#endif
constexpr long FEW_ROWS = 4;                // up to here the time of a product is that of reading its weights
constexpr long AHEAD = 1024;                // bytes between what is used and what is fetched
constexpr long BLOCK_BYTES = 384 << 10;     // activations that stay in the second-level cache beside the weights
constexpr long CHUNK_BYTES = 128 << 10;     // weights a thread takes at a time

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
PHX_INLINE void stream_panel(const Rows<T>& a, const T* panel, long steps, long n, Finish& finish) {
    F32 out[R];
    stream<R, R == 1 ? 8 : 4>(a, 0, panel, steps, out);
    for (int r = 0; r < R; ++r) finish(r, n * LANES, out[r]);
}

// R rows of int8 by C panels of 8 or 4 bits: exact sums of 32 products, then their scales in float32 (as in llama.cpp's
// blocks). Where codes are centred, the centre's share is taken off the exact sum; else `offsets` times the group's sum.
template <int R, int C, bool FOUR_BITS, bool OFFSETS>
PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, bool fetching, F32 (&acc)[R][C]) {
    constexpr long GROUP_BYTES = GROUP * LANES / (FOUR_BITS ? 2 : 1), CENTRE = FOUR_BITS ? 8 : 128;
    const long groups = a.groups();
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < C; ++c) acc[r][c] = zero();
    const char* panel[C];
    const f16 *scales[C], *offsets[C];
    for (int c = 0; c < C; ++c) {
        panel[c] = w.panel(n + c);
        scales[c] = w.scales + (n + c) * groups * LANES;
        offsets[c] = OFFSETS ? w.offsets + (n + c) * groups * LANES : nullptr;
    }
    for (long g = 0; g < groups; ++g) {
        I32 exact[R][C];
        for (int r = 0; r < R; ++r) {
            const int32_t start = OFFSETS ? 0 : int32_t(-CENTRE) * a.sums[(m + r) * groups + g];
            for (int c = 0; c < C; ++c) exact[r][c] = set1(start);
        }
        const int8_t* codes = a.codes + m * a.stride + g * GROUP;
        const auto four_inputs = [&](long k, const I32(&weights)[C]) __attribute__((always_inline)) {
            for (int r = 0; r < R; ++r) {
                int32_t quadruple;
                std::memcpy(&quadruple, codes + r * a.stride + k, 4);
                const I32 x = set1(quadruple);
                for (int c = 0; c < C; ++c) exact[r][c] = dot_u8s8(exact[r][c], weights[c], x);
            }
        };
        for (long line = 0; line < GROUP_BYTES; line += 64) {
            I32 stored[C];
            for (int c = 0; c < C; ++c) {
                stored[c] = load(reinterpret_cast<const int32_t*>(panel[c] + g * GROUP_BYTES + line));
                if (fetching) prefetch(panel[c] + g * GROUP_BYTES + line + AHEAD);
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
        for (int c = 0; c < C; ++c) {
            const F32 scale = load_f16(scales[c] + g * LANES);
            for (int r = 0; r < R; ++r) {
                const F32 own = set1(a.scales[(m + r) * groups + g]);
                acc[r][c] = fma(mul(scale, own), to_float(exact[r][c]), acc[r][c]);
            }
            if constexpr (OFFSETS) {
                const F32 offset = load_f16(offsets[c] + g * LANES);
                for (int r = 0; r < R; ++r) {
                    const long place = (m + r) * groups + g;
                    acc[r][c] = fma(offset, set1(a.scales[place] * float(a.sums[place])), acc[r][c]);
                }
            }
        }
    }
}

template <int R, int C> PHX_INLINE void tile(const QuantisedRows& a, long m, const Weight& w, long n, bool fetching, F32 (&acc)[R][C]) {
    if (w.format == Format::Int8) {
        tile<R, C, false, false>(a, m, w, n, fetching, acc);
    } else if (w.offsets == nullptr) {
        tile<R, C, true, false>(a, m, w, n, fetching, acc);
    } else {
        tile<R, C, true, true>(a, m, w, n, fetching, acc);
    }
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
    tile<R, C>(a, m, w, n, fetching && number == 0, acc);
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

template <class T, class Finish> void stream_panels(const Rows<T>& a, long rows, const Weight& w, long n, Finish& finish) {
    const T* panel = reinterpret_cast<const T*>(w.panel(n));
    const long steps = w.depth / PAIR<T>;
    switch (rows) {
        case 1: stream_panel<1>(a, panel, steps, n, finish); break;
        case 2: stream_panel<2>(a, panel, steps, n, finish); break;
        case 3: stream_panel<3>(a, panel, steps, n, finish); break;
        default: stream_panel<4>(a, panel, steps, n, finish); break;
    }
}

template <class A> constexpr bool STREAMS = false;
template <class T> constexpr bool STREAMS<Rows<T>> = true;

// A panel and the next are the two halves of a gated layer, so they have to meet: PAIRS.
template <class A, class Finish> void product(Team& team, const A& a, long rows, const Weight& w, Finish finish) {
    if constexpr (STREAMS<A>) {
        if (rows <= FEW_ROWS) {
            const long unit = Finish::PAIRS ? 2 : 1;
            const long most = std::min(CHUNK_BYTES / w.panel_bytes(), w.panels / (4 * team.size()));
            const long chunk = std::max<long>(1, most / unit) * unit;
            for (long first; (first = team.claim(chunk)) < w.panels;) {
                for (long n = first; n < std::min(first + chunk, w.panels); n += unit) {
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
            return;
        }
    }
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
