// Draws from logits that are in memory; what needs nothing but the best score is drawn in the head's product instead.
#include "sampling.h"

#include <vector>

#include "best.h"
#include "exponentials.h"
#include "top_k.h"

using namespace phx;

namespace {

constexpr long PIECE = 4096;     // columns that a thread takes at once
constexpr long ALONE = 1 << 17;  // logits that are read sooner than a thread wakes up
constexpr long SORTING = 64;     // logits that are read while one token is sorted and weighed

// Calls work(thread, claim) on every thread, or on this one where there is little to do; claim() is the next number.
template <class Work> void share(Team& team, long logits, Work work) {
    if (logits > ALONE) {
        team.run([&](int thread) { work(thread, [&] { return team.claim(1); }); });
    } else {
        long next = 0;
        work(0, [&] { return next++; });
    }
}

// The best score of a row, its token, and the largest logit.
struct Winner {
    float score;
    PhxToken token;
    float largest;
};

struct Stalled {
    int status;
};

class Sampling {
  public:
    Sampling(Team& team, const PhxLogits& logits, const PhxDraw* draws, const PhxGather& gather)
        : team_(team), l(logits), draws_(draws), gather_(gather), pieces_((logits.columns + PIECE - 1) / PIECE) {}

    void draw(int32_t* ids) const {
        std::vector<long> plain, nucleus, first;
        for (long m = 0; m < l.count; ++m) {
            const PhxDraw& draw = draws_[m];
            const bool random = draw.temperature > 0, filtered = draw.top_p < 1 || draw.min_p > 0;
            (random && draw.top_k > 0 ? first : random && filtered ? nucleus : plain).push_back(m);
        }
        if (!plain.empty()) {
            const std::vector<Winner> winners = best(plain, std::vector<PhxToken>(plain.size(), AFTER_ALL));
            for (size_t i = 0; i < plain.size(); ++i) ids[plain[i]] = winners[i].token.id;
        }
        if (!nucleus.empty()) draw_nucleus(nucleus, ids);
        if (!first.empty()) draw_first(first, ids);
    }

  private:
    static constexpr PhxToken AFTER_ALL{NO_LOGIT, 0};

    const float* row(long m) const { return l.data + m * l.stride; }

    // What passes top-p and min-p is the beginning of the tokens' order. So if the best score of all tokens passes, it is
    // the best of those that do; if not, all that pass come before it, and the best of these is next. Whether a token
    // passes takes a sum over those before it, and nothing has to be sorted.
    void draw_nucleus(std::vector<long> rows, int32_t* ids) const {
        std::vector<PhxToken> ends(rows.size(), AFTER_ALL);
        while (!rows.empty()) {
            const std::vector<Winner> winners = best(rows, ends);
            const std::vector<Sums> sums = exponentials(rows, winners);
            std::vector<long> left;
            ends.clear();
            for (size_t i = 0; i < rows.size(); ++i) {
                const PhxDraw& draw = draws_[rows[i]];
                const Winner& winner = winners[i];
                ids[rows[i]] = winner.token.id;
                const bool beyond = draw.top_p < 1 && sums[i].before >= draw.top_p * sums[i].all;
                const float ratio = std::exp((winner.token.logit - winner.largest) / draw.temperature);
                if ((beyond || ratio < draw.min_p) && winner.score > NO_LOGIT) {
                    left.push_back(rows[i]), ends.push_back(winner.token);
                }
            }
            rows = left;
        }
    }

    // The best of the tokens before `ends`, over all shards.
    std::vector<Winner> best(const std::vector<long>& rows, const std::vector<PhxToken>& ends) const {
        const long count = long(rows.size());
        Best best(team_.size());
        best.expect(draws_, rows.data(), count);
        std::vector<float> largest(count * pieces_);
        share(team_, count * l.columns, [&](int thread, auto claim) {
            const KeepBest keep = best.keep(thread, l.token_keys, l.columns);
            for (long piece; (piece = claim()) < pieces_;) {
                const long begin = piece * PIECE, end = std::min(begin + PIECE, l.columns);
                for (long i = 0; i < count; ++i) {
                    const Before before(ends[i], l.first_id);
                    F32 most = set1(NO_LOGIT);
                    each_vector(row(rows[i]), begin, end, [&](long n, F32 x) {
                        most = max(most, x);
                        keep(i, n, where_above(x, before.limits(n), x, set1(NO_LOGIT)));
                    });
                    largest[i * pieces_ + piece] = phx::largest(most);
                }
            }
        });
        std::vector<Winner> own(count);
        best.merge([&](long i, float score, int32_t column) {
            const float logit = l.columns > 0 ? row(rows[i])[column] : NO_LOGIT;
            own[i] = {score, {logit, l.first_id + column}, NO_LOGIT};
            for (long piece = 0; piece < pieces_; ++piece) {
                own[i].largest = std::max(own[i].largest, largest[i * pieces_ + piece]);
            }
        });
        const std::vector<Winner> all = gathered(own);
        for (long shard = 0; shard < gather_.ranks; ++shard) {
            for (long i = 0; i < count; ++i) {
                const Winner& other = all[shard * count + i];
                const float most = std::max(own[i].largest, other.largest);
                const bool better = other.score > own[i].score ||
                                    (other.score == own[i].score && other.token.id < own[i].token.id);
                if (better) own[i] = other;
                own[i].largest = most;
            }
        }
        return own;
    }

    std::vector<Sums> exponentials(const std::vector<long>& rows, const std::vector<Winner>& winners) const {
        const long count = long(rows.size());
        std::vector<Sums> parts(count * pieces_), own(count);
        share(team_, count * l.columns, [&](int, auto claim) {
            for (long part; (part = claim()) < count * pieces_;) {
                const long i = part / pieces_, begin = part % pieces_ * PIECE, end = std::min(begin + PIECE, l.columns);
                const Before before(winners[i].token, l.first_id);
                const float temperature = draws_[rows[i]].temperature;
                parts[part] = phx::exponentials(row(rows[i]), begin, end, winners[i].largest, temperature, before);
            }
        });
        for (long part = 0; part < count * pieces_; ++part) own[part / pieces_] += parts[part];
        const std::vector<Sums> all = gathered(own);
        std::vector<Sums> sums(count);
        for (size_t i = 0; i < all.size(); ++i) sums[i % count] += all[i];
        return sums;
    }

    void draw_first(const std::vector<long>& rows, int32_t* ids) const {
        const long count = long(rows.size());
        long most = 0;
        for (const long m : rows) most = std::max<long>(most, draws_[m].top_k);
        most = std::min(most, l.vocab_size);
        std::vector<PhxToken> own(count * most);
        share(team_, count * l.columns, [&](int, auto claim) {
            std::vector<PhxToken> tokens;
            for (long i; (i = claim()) < count;) {
                first_tokens(row(rows[i]), l.columns, l.first_id, most, tokens);
                tokens.resize(most, {NO_LOGIT, -1});
                std::copy(tokens.begin(), tokens.end(), own.begin() + i * most);
            }
        });
        const std::vector<PhxToken> all = gathered(own);
        share(team_, gather_.ranks * count * most * SORTING, [&](int, auto claim) {
            TopK top_k;
            for (long i; (i = claim()) < count;) {
                for (long shard = 0; shard < gather_.ranks; ++shard) {
                    top_k.offer(all.data() + (shard * count + i) * most, most);
                }
                ids[rows[i]] = top_k.draw(draws_[rows[i]]);
            }
        });
    }

    // Every rank's, one after the other.
    template <class T> std::vector<T> gathered(const std::vector<T>& own) const {
        if (gather_.ranks == 1) return own;
        std::vector<T> all(own.size() * gather_.ranks);
        const int status = gather_.all_gather(gather_.self, own.data(), all.data(), long(own.size() * sizeof(T)));
        if (status != 0) throw Stalled{status};
        return all;
    }

    Team& team_;
    const PhxLogits& l;
    const PhxDraw* draws_;
    const PhxGather& gather_;
    const long pieces_;
};

}  // namespace

extern "C" int phx_draw(Team* team, const PhxLogits* logits, const PhxDraw* draws, const PhxGather* gather, int32_t* ids) {
    try {
        Sampling(*team, *logits, draws, *gather).draw(ids);
    } catch (const Stalled& stalled) {
        return stalled.status;
    }
    return 0;
}
