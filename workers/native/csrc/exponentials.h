// Sums of the exponentials that probabilities are made of.
#pragma once

#include <algorithm>

#include "token.h"

namespace phx {

struct Sums {
    float all = 0, before = 0;
    Sums& operator+=(const Sums& more) {
        all += more.all, before += more.before;
        return *this;
    }
};

// Of exp((logit - largest) / temperature) over the columns from `begin` to `end`: of all of them, and of those `before`
// a token.
inline Sums exponentials(const float* logits, long begin, long end, float largest, float temperature, const Before& before) {
    constexpr int U = 4;  // no sum waits for the one before
    const F32 from = set1(largest), scale = set1(std::min(LOG2_E / temperature, std::numeric_limits<float>::max()));
    F32 all[U], some[U];
    for (int u = 0; u < U; ++u) all[u] = some[u] = zero();
    const auto add_up = [&](long n, F32 x, int u) {
        const F32 power = exp2(mul(sub(x, from), scale));
        all[u] = add(all[u], power);
        some[u] = add(some[u], where_above(x, before.limits(n), power, zero()));
    };
    long n = begin;
    for (; n + U * LANES <= end; n += U * LANES) {
        for (int u = 0; u < U; ++u) add_up(n + u * LANES, load(logits + n + u * LANES), u);
    }
    each_vector(logits, n, end, [&](long at, F32 x) { add_up(at, x, 0); });
    return {sum(add(add(all[0], all[1]), add(all[2], all[3]))), sum(add(add(some[0], some[1]), add(some[2], some[3])))};
}

}  // namespace phx
