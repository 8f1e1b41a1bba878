// Where a stage keeps what its products read and write.
#pragma once

#include <new>

#include "gemm.h"
#include "pages.h"

namespace phx {

// Zeroed memory for `count` values.
template <class T> class Buffer {
  public:
    explicit Buffer(long count = 0) : pages_(count * sizeof(T)) {
        if (count > 0 && pages_.get() == nullptr) throw std::bad_alloc();
    }
    T* get() const { return reinterpret_cast<T*>(pages_.get()); }

  private:
    Pages pages_;
};

// What a product reads: rows in the form that its weight's format asks for.
struct Input {
    Buffer<char> rows;
    Buffer<float> scales, weighted;
    Buffer<int32_t> starts;
    long width = 0;  // values a row

    Input() = default;
    Input(long count, long inputs) {
        width = round_up(inputs, LINE);
        rows = Buffer<char>(count * width * 4);
        scales = Buffer<float>(count * width / GROUP);
        weighted = Buffer<float>(count * width / GROUP);
        starts = Buffer<int32_t>(count * width / GROUP);
    }
    template <class T> Rows<T> as(long count) const {
        return {reinterpret_cast<Kept<T>*>(rows.get()), width, count};
    }
    template <int BITS> GroupRows<BITS> groups(long count, long depth) const {
        return {reinterpret_cast<Codes<BITS>*>(rows.get()), scales.get(), weighted.get(), starts.get(), depth,
                Tiles(count, GROUP_TILE_ROWS)};
    }
    TokenRows tokens(long count) const {
        return {reinterpret_cast<Kept<int8_t>*>(rows.get()), scales.get(), starts.get(), width, count};
    }
    // Row m of `count` from floats, which are followed by zeros up to a multiple of 16.
    void put(const Weight& reader, long m, long count, const float* x, long size) {
        switch (reader.format) {
            case Format::Float32: put_as(as<float>(count), m, x, size); break;
            case Format::BFloat16: put_as(as<bf16>(count), m, x, size); break;
            case Format::Channels: tokens(count).quantise(x, size, reader.depth, m); break;
            case Format::Int8: groups<8>(count, reader.depth).quantise(x, size, m); break;
            case Format::Int4: groups<4>(count, reader.depth).quantise(x, size, m); break;
        }
    }

    // Its product with a weight: what gemm.h's function of this name does.
    template <class Finish> void product(Team& team, int thread, long rows, const Weight& w, Finish finish) const {
        read_by(w, rows, [&](const auto& in) { phx::product(team, thread, in, rows, w, finish); });
    }

    // One panel of it, for few rows.
    template <class Finish> void panel(long rows, const Weight& w, long n, Finish finish) const {
        read_by(w, rows, [&](const auto& in) { panels_of(in, rows, w, n, n + 1, finish); });
    }

  private:
    // Calls work(rows) with `count` rows in the form that `reader` asks for.
    template <class Work> void read_by(const Weight& reader, long count, Work work) const {
        switch (reader.format) {
            case Format::Float32: return work(as<float>(count));
            case Format::BFloat16: return work(as<bf16>(count));
            case Format::Channels: return work(tokens(count));
            case Format::Int8: return work(groups<8>(count, reader.depth));
            case Format::Int4: return work(groups<4>(count, reader.depth));
        }
    }

    template <class T> static void put_as(const Rows<T>& to, long m, const float* x, long size) {
        for (long i = 0; i < size; i += LANES) to.put(m, i, load(x + i), size - i);
    }
};

}  // namespace phx
