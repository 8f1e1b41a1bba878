// Weights as the products read them: panels of 16 outputs, each a stream that is read once from start to end.
//
// A panel holds, for every PAIR of inputs, the 16 outputs' values side by side: [inputs / PAIR][16][PAIR]. Quantised
// panels hold groups of 32 inputs, with one float16 scale (and offset) an output and group beside them, or 8-bit codes with
// one float32 scale an output (channels). Outputs and inputs are filled up with zeros to whole panels and groups, inputs of
// channels to the 64 that a tile of the matrix registers has. A sparse panel is one of BFloat16 without its zeros: a bit
// for every value, [inputs / 2] words of 32, then the values whose bits are set, one after the other.
#pragma once

#include "dot.h"

namespace phx {

constexpr long GROUP = 32;
constexpr int32_t centre(int bits) { return 1 << (bits - 1); }  // the code that means zero, where there are no offsets

enum class Format : int { Float32 = 0, BFloat16 = 1, Int8 = 2, Int4 = 3, Channels = 4 };

struct Weight {
    Format format;
    long outputs, inputs;  // as the layer means them
    long panels;
    long depth;            // inputs, filled up
    long kept;             // values that a sparse panel has room for; 0: panels are dense
    char* data;
    f16* scales;    // [panels][groups][16], formats with groups only
    f16* offsets;   // the same, or null where codes are centred: then an offset is -scale * 2^(bits - 1)
    float* channels;  // scales, [panels][16], of centred codes

    bool sparse() const { return kept > 0; }
    bool grouped() const { return format == Format::Int8 || format == Format::Int4; }
    bool quantised() const { return grouped() || format == Format::Channels; }
    long groups() const { return depth / GROUP; }
    long panel_bytes() const {
        if (sparse()) return round_up(depth / 2 * 4 + kept * 2, LINE);
        switch (format) {
            case Format::Float32: return depth * LANES * 4;
            case Format::BFloat16: return depth * LANES * 2;
            case Format::Int8:
            case Format::Channels: return depth * LANES;
            case Format::Int4: return depth * LANES / 2;
        }
        return 0;
    }
    const char* panel(long n) const { return data + n * panel_bytes(); }
    // That a product reads.
    long bytes() const { return panels * (panel_bytes() + (grouped() ? groups() * LANES * (offsets ? 4 : 2) : 0)); }

    // Panels `first` to `end` - 1.
    Weight part(long first, long end) const {
        Weight w = *this;
        w.panels = end - first, w.data += first * panel_bytes();
        if (scales != nullptr) w.scales += first * groups() * LANES;
        if (offsets != nullptr) w.offsets += first * groups() * LANES;
        if (channels != nullptr) w.channels += first * LANES;
        return w;
    }

    // Fetches scales and offsets of `count` panels.
    void prefetch_tables(long n, long count) const {
        const long first = n * groups() * LANES, last = first + count * groups() * LANES;
        for (long i = first; i < last; i += LINE / long(sizeof(f16))) {
            prefetch(scales + i);
            if (offsets != nullptr) prefetch(offsets + i);
        }
    }
};

// Inputs of a row, filled up for the format; activation buffers are this wide.
inline long padded_inputs(Format format, long inputs) {
    switch (format) {
        case Format::Float32: return inputs;
        case Format::BFloat16: return round_up(inputs, 2);
        case Format::Channels: return round_up(inputs, LINE);
        default: return round_up(inputs, GROUP);
    }
}

}  // namespace phx

// The C side; see workers/native/weights.py.
extern "C" {
// Null when there is no memory. `panels` may be more than `outputs` needs. Of a bf16 weight's panels that have no more
// than `kept` values beside zeros only these are stored; 0: all.
phx::Weight* phx_weight_new(int format, long outputs, long inputs, long panels, long kept, int with_offsets);
void phx_weight_free(phx::Weight* weight);
// Row i of `rows` rows goes to lane i % 16 of panel first + i / 16 * step.
void phx_weight_pack_f32(phx::Weight* weight, const float* source, long rows, long first, long step);
void phx_weight_pack_bf16(phx::Weight* weight, const uint16_t* source, long rows, long first, long step);
void phx_weight_pack_codes(phx::Weight* weight, const uint8_t* codes, const uint16_t* scales, const uint16_t* offsets,
                           long rows, long first, long step);
void phx_weight_pack_channels(phx::Weight* weight, const uint8_t* codes, const float* scales, long rows, long first, long step);
// Rounds rows of floats to 8 or 4 bits in groups of `inputs`, rows from lane 0 of panel `first` on. Where the weight has 32
// inputs more than those, these hold what rounding took from the last group. `changed` and `kept` [rows, groups of inputs]
// get the squares of what all of that changes and of what is kept.
void phx_weight_round(phx::Weight* weight, const float* source, long rows, long inputs, long first, float* changed, float* kept);
}
