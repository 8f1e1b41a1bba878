// One product on its own, for tests and measurements.
#include <cmath>
#include <vector>

#include "input.h"

using namespace phx;

namespace {

struct StoreOutputs {
    static constexpr bool PAIRS = false;
    float* out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store_some(out + m * columns + n, x, columns - n); }
};

}  // namespace

extern "C" {

// out [rows, outputs] = x [rows, inputs] · weight, `repeats` times over on `threads` threads. Rows are rounded to the
// form that the weight's format asks for, once.
void phx_product(const Weight* weight, const float* x, long rows, float* out, int threads, long repeats) {
    Team team(threads, true);
    const long width = round_up(weight->inputs, GROUP);
    Input in(rows, width);
    Lines<float> row(width);
    for (long m = 0; m < rows; ++m) {
        std::copy_n(x + m * weight->inputs, weight->inputs, row.begin());
        in.put(*weight, m, rows, row.data(), weight->inputs);
    }
    team.run([&](int thread) {
        for (long i = 0; i < repeats; ++i) {
            in.product(team, thread, rows, *weight, StoreOutputs{out, weight->outputs});
            team.barrier();
        }
    });
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
