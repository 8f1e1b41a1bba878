// A step's attention as pieces of work that keep all threads busy.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

namespace phx {

constexpr long SPLIT_TILES = 32;  // the least tiles of context that a piece of a pass looks at

class Passes {
  public:
    // `query_heads[h]` of them read KV head h.
    Passes(const CacheShape& shape, const int* query_heads, long threads)
        : shape_(shape), query_heads_(query_heads, query_heads + shape.kv_heads), threads_(threads), most_rows_(QUERY_ROWS) {
        for (const int group : query_heads_) most_rows_ = std::max<long>(most_rows_, group);
    }

    // A pass that is much of the step's work is cut along the context, so that no thread waits for it.
    void plan(const std::vector<Chunk>& chunks) {
        passes_.clear(), parts_.clear(), whole_.clear();
        long work = 0;
        for (const Chunk& chunk : chunks) {
            long head = 0;
            for (long kv = 0; kv < shape_.kv_heads; ++kv) {
                const long group = query_heads_[kv], most = std::max<long>(1, QUERY_ROWS / std::max<long>(1, group));
                for (long begin = 0; begin < chunk.count && group > 0; begin += most) {
                    const long end = std::min(begin + most, chunk.count);
                    const long tiles = tile_of(chunk.position + end - 1) + 1;  // up to the last key's
                    whole_.push_back({chunk, begin, end, kv, head, group, 0, tiles});
                    work += whole_.back().work();
                }
                head += group;
            }
        }
        for (Pass& pass : whole_) {
            const long tiles = pass.last_tile;
            const long pieces = threads_ == 1 ? 1 : std::min(tiles / SPLIT_TILES, 4 * threads_ * pass.work() / work);
            if (pieces < 2) {
                passes_.push_back(pass);
                continue;
            }
            parts_.push_back({long(passes_.size()), pieces});
            for (pass.part = 0; pass.part < pieces; ++pass.part) {
                pass.first_tile = tiles * pass.part / pieces, pass.last_tile = tiles * (pass.part + 1) / pieces;
                passes_.push_back(pass);
            }
        }
        const long size = parts_.empty() ? 0 : long(passes_.size()) * partial_size();
        if (long(partials_.size()) < size) partials_.resize(size);
    }

    long count() const { return long(passes_.size()); }
    long most_rows() const { return most_rows_; }

    // Pass i without the tiles that lie before the window.
    Pass within(long window, long i) const {
        Pass pass = passes_[i];
        if (window > 0) {
            const long begin = std::max<long>(0, pass.chunk.position + pass.begin - window + 1);
            pass.first_tile = std::min(std::max(pass.first_tile, tile_of(begin)), pass.last_tile);
        }
        return pass;
    }

    // Keeps what pass i, a part of a whole one, has found.
    template <class Scratch> void keep(long i, const Pass& pass, const Scratch& scratch) {
        float* to = partials_.data() + i * partial_size();
        std::copy_n(scratch.out.data(), pass.rows() * shape_.depth(), to);
        std::copy_n(scratch.maximum.data(), pass.rows(), to + most_rows_ * shape_.depth());
        std::copy_n(scratch.total.data(), pass.rows(), to + most_rows_ * (shape_.depth() + 1));
    }

    // How many passes were cut into parts; `merge` makes one of them whole, in `sums` [depth], and calls
    // put(pass, row, sums, total) for each of its rows.
    long parted() const { return long(parts_.size()); }
    template <class Put> void merge(long number, float* sums, Put put) const {
        const auto [first, pieces] = parts_[number];
        const long depth = shape_.depth();
        for (long r = 0; r < passes_[first].rows(); ++r) {
            const auto of = [&](long piece) { return partials_.data() + (first + piece) * partial_size(); };
            float most = of(0)[most_rows_ * depth + r], total = 0;
            for (long p = 1; p < pieces; ++p) most = std::max(most, of(p)[most_rows_ * depth + r]);
            std::fill_n(sums, depth, 0.0f);
            for (long p = 0; p < pieces; ++p) {
                const float share = std::exp2(of(p)[most_rows_ * depth + r] - most);
                total += of(p)[most_rows_ * (depth + 1) + r] * share;
                for (long d = 0; d < depth; d += LANES) {
                    store(sums + d, fma(load(of(p) + r * depth + d), set1(share), load(sums + d)));
                }
            }
            put(passes_[first], r, sums, total);
        }
    }

  private:
    struct Part {
        long first, pieces;
    };
    long tile_of(long position) const {
        return position / shape_.block_size * shape_.tiles() + position % shape_.block_size / TILE;
    }
    // Floats: sums [most_rows, depth], maxima and totals [most_rows].
    long partial_size() const { return most_rows_ * (shape_.depth() + 2); }

    const CacheShape shape_;
    const std::vector<int> query_heads_;
    const long threads_;
    long most_rows_;
    std::vector<Pass> whole_, passes_;  // before and after they are cut
    std::vector<Part> parts_;
    Lines<float> partials_;
};

}  // namespace phx
