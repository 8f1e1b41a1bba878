// What becomes of a product's finished tiles: see gemm.h.
#pragma once

#include <algorithm>

#include "rows.h"

namespace phx {

struct StoreRows {
    static constexpr bool PAIRS = false;
    float* out;
    long stride;
    const float* bias;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store(out + m * stride + n, bias ? add(x, load(bias + n)) : x); }
};

struct AddRows {
    static constexpr bool PAIRS = false;
    float* out;
    long stride;
    PHX_INLINE void operator()(long m, long n, F32 x) const {
        float* to = out + m * stride + n;
        store(to, add(load(to), x));
    }
};

// silu(gate) * up, as the next product's rows. Panels of gate and up take turns.
template <class T> struct Gate {
    static constexpr bool PAIRS = true;
    Rows<T> out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 gate, F32 up) const {
        out.put(m, n / 2, mul(silu<EXP_TERMS<T>>(gate), up), columns - n / 2);
    }
};

// The same as plain rows of floats.
struct GateRows {
    static constexpr bool PAIRS = true;
    float* out;
    long columns;
    PHX_INLINE void operator()(long m, long n, F32 gate, F32 up) const {
        store_some(out + m * columns + n / 2, mul(silu<EXP_TERMS<bf16>>(gate), up), columns - n / 2);
    }
};

struct StoreLogits {
    static constexpr bool PAIRS = false;
    float* out;
    long stride, columns;
    PHX_INLINE void operator()(long m, long n, F32 x) const { store_some(out + m * stride + n, x, columns - n); }
};

}  // namespace phx
