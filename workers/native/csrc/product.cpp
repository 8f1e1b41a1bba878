// One product on its own, for tests and measurements.
#include <cmath>
#include <vector>

#include "gemm.h"
#include "pages.h"

using namespace phx;

namespace {

struct StoreOutputs {
    static constexpr bool PAIRS = false;
    float* out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store_some(out + m * columns + n, x, columns - n); }
};

template <class A> void repeat(Team& team, const A& in, long rows, const Weight& w, float* out, long repeats) {
    team.run([&](int thread) {
        for (long i = 0; i < repeats; ++i) {
            product(team, thread, in, rows, w, StoreOutputs{out, w.outputs});
            team.barrier();
        }
    });
}

template <class T> void multiply(Team& team, const Weight& w, const float* x, long rows, float* out, long repeats) {
    const long depth = round_up(w.depth, LINE);
    Lines<T> values(rows * depth);
    const Rows<T> in(values.data(), depth, rows);
    for (long m = 0; m < rows; ++m) {
        for (long k = 0; k < w.inputs; k += LANES) {
            float some[LANES] = {};
            std::copy_n(x + m * w.inputs + k, std::min<long>(LANES, w.inputs - k), some);
            in.put(m, k, load(some), w.inputs - k);
        }
    }
    repeat(team, in, rows, w, out, repeats);
}

void multiply_quantised(Team& team, const Weight& w, const float* x, long rows, float* out, long repeats) {
    const long groups = w.groups();
    std::vector<int8_t> codes(rows * w.depth);
    std::vector<float> scales(rows * groups), weighted(rows * groups);
    std::vector<int32_t> starts(rows * groups);
    const QuantisedRows in{codes.data(), scales.data(), weighted.data(), starts.data(), w.depth, Tiles(rows, TILE_ROWS_INT)};
    for (long m = 0; m < rows; ++m) quantise(x + m * w.inputs, w.inputs, w.centre(), in, m);
    repeat(team, in, rows, w, out, repeats);
}

void multiply_channels(Team& team, const Weight& w, const float* x, long rows, float* out, long repeats) {
    std::vector<int8_t> codes(rows * w.depth);
    std::vector<float> scales(rows);
    std::vector<int32_t> starts(rows);
    const TokenRows in(codes.data(), scales.data(), starts.data(), w.depth, rows);
    for (long m = 0; m < rows; ++m) in.quantise(x + m * w.inputs, w.inputs, w.depth, m);
    repeat(team, in, rows, w, out, repeats);
}

}  // namespace

extern "C" {

// out [rows, outputs] = x [rows, inputs] · weight, `repeats` times over on `threads` threads. Rows are rounded to the
// form that the weight's format asks for, once.
void phx_product(const Weight* weight, const float* x, long rows, float* out, int threads, long repeats) {
    Team team(threads, true);
    if (weight->format == Format::Channels) {
        multiply_channels(team, *weight, x, rows, out, repeats);
    } else if (weight->quantised()) {
        multiply_quantised(team, *weight, x, rows, out, repeats);
    } else if (weight->format == Format::BFloat16) {
        multiply<bf16>(team, *weight, x, rows, out, repeats);
    } else {
        multiply<float>(team, *weight, x, rows, out, repeats);
    }
}

// Whether zeros of bf16 weights are left out where they are many.
int phx_skips_zeros() { return SKIPS_ZEROS; }

// Whether batches of bf16 rows are multiplied in AMX's registers.
int phx_in_matrix_registers() { return amx::usable(); }

// Adds up `count` floats on `threads` threads, `repeats` times over: how fast this machine reads.
float phx_read(const float* x, long count, int threads, long repeats) {
    Team team(threads, true);
    std::vector<float> sums(threads * 16);
    team.run([&](int thread) {
        for (long i = 0; i < repeats; ++i) {
            F32 sum[4] = {zero(), zero(), zero(), zero()};
            constexpr long step = 4 * LANES;
            const long begin = count / step * thread / threads, end = count / step * (thread + 1) / threads;
            for (long at = begin * step; at < end * step; at += step) {
                for (int j = 0; j < 4; ++j) {
                    prefetch(reinterpret_cast<const char*>(x + at + j * LANES) + AHEAD);
                    sum[j] = add(sum[j], load(x + at + j * LANES));
                }
            }
            sums[thread * 16] += phx::sum(add(add(sum[0], sum[1]), add(sum[2], sum[3])));
            team.barrier();
        }
    });
    float total = 0;
    for (int thread = 0; thread < threads; ++thread) total += sums[thread * 16];
    return total;
}

}  // extern "C"
