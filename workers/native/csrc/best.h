// The best score of every row, when each thread has looked at some of the columns.
#pragma once

#include <vector>

#include "draw.h"
#include "token.h"

namespace phx {

class Best {
  public:
    explicit Best(int threads) : found_(threads) {}

    // Before threads `keep`. `rows` [count] of the draws; null: the first.
    void expect(const PhxDraw* draws, const long* rows, long count) {
        scores_.clear();
        for (long m = 0; m < count; ++m) scores_.emplace_back(draws[rows ? rows[m] : m]);
        for (Found& found : found_) {
            found.values.assign(count, NO_LOGIT);
            found.places.assign(count, 0);
        }
    }

    // Takes in what a thread comes across, whose columns ascend.
    KeepBest keep(int thread, const int32_t* keys, long columns) {
        return {scores_.data(), keys, found_[thread].values.data(), found_[thread].places.data(), columns};
    }

    // Calls put(row, score, column) for every row; where no score is above -inf, with the first column. All threads have
    // met before.
    template <class Put> void merge(Put put) const {
        for (size_t m = 0; m < scores_.size(); ++m) {
            float value = found_[0].values[m];
            int32_t place = found_[0].places[m];
            for (const Found& other : found_) {
                const float v = other.values[m];
                if (v > value || (v == value && other.places[m] < place)) value = v, place = other.places[m];
            }
            put(long(m), value, place);
        }
    }

  private:
    struct Found {
        std::vector<float> values;
        std::vector<int32_t> places;
    };
    std::vector<Scores> scores_;
    std::vector<Found> found_;
};

}  // namespace phx
