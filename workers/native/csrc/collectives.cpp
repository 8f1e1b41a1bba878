// Operations are numbered. Each rank owns two slots, used in turn: to take part in operation s it writes its slot s % 2
// and then reaches s, and reads the others' slots once they have reached s. To have reached s also says to be done with
// reading what was published at s - 1, so that slot s % 2 is free again once everyone has reached s - 1.
#include "collectives.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <vector>

#include "mapping.h"
#include "meeting.h"

using namespace phx;

namespace {

constexpr long PAGE = 4096, HEADER_WORDS = 16;
constexpr long ONE_SHOT_BYTES = 32 << 10;  // up to here one exchange is quicker than the two of summing by shares
constexpr long BLOCK = 512;                // sums are kept in the nearest cache

inline float widen(float x) { return x; }
inline float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline void narrow(float x, float* out) { *out = x; }
inline void narrow(float x, uint16_t* out) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16, quiet = bits >> 16 | 0x40;
    *out = static_cast<uint16_t>(x != x ? quiet : rounded);
}

long data_offset(int size) { return (Meeting::bytes(size) + PAGE - 1) / PAGE * PAGE; }

}  // namespace

struct PhxGroup {
    PhxGroup(int file, int size, int rank, long slot_bytes, double timeout_s, double spin_us)
        : size(size), rank(rank), slot_bytes(slot_bytes), mapping(file, phx_group_bytes(size, slot_bytes)),
          meeting(reinterpret_cast<Board*>(mapping.address()), size, rank, timeout_s, static_cast<long>(spin_us * 1e3)),
          parts(size) {}

    char* slot(uint32_t operation, int owner) const {
        return mapping.address() + data_offset(size) + ((operation & 1) * size + owner) * slot_bytes;
    }
    int begin(bool apart = false) {
        if (const int outcome = meeting.await_all(operation, apart)) return outcome;
        ++operation;
        return MET;
    }
    void publish() { meeting.reach(operation); }

    // out = the sum of `parts` in their order. `out` may be one of them; `copy` gets the same, unless it is null.
    template <class T> void sum(long count, T* out, T* copy) const {
        for (long start = 0; start < count; start += BLOCK) {
            const long width = std::min(BLOCK, count - start);
            float total[BLOCK];
            T rounded[BLOCK];
            const T* part = reinterpret_cast<const T*>(parts[0]) + start;
            for (long i = 0; i < width; ++i) total[i] = widen(part[i]);
            for (int peer = 1; peer < size; ++peer) {
                part = reinterpret_cast<const T*>(parts[peer]) + start;
                for (long i = 0; i < width; ++i) total[i] += widen(part[i]);
            }
            for (long i = 0; i < width; ++i) narrow(total[i], rounded + i);
            std::memcpy(out + start, rounded, width * sizeof(T));
            if (copy) std::memcpy(copy + start, rounded, width * sizeof(T));
        }
    }

    template <class T> int reduce_at_once(T* x, long count) {
        if (const int outcome = begin()) return outcome;
        std::memcpy(slot(operation, rank), x, count * sizeof(T));
        publish();
        if (const int outcome = meeting.await_all(operation)) return outcome;
        for (int peer = 0; peer < size; ++peer) parts[peer] = slot(operation, peer);
        parts[rank] = reinterpret_cast<const char*>(x);
        sum(count, x, static_cast<T*>(nullptr));
        return MET;
    }

    // Each rank sums its own share of every piece and hands the sum to the others. In one operation it hands out a
    // piece, sums the one before and takes in the sums of the one before that. A slot's first half is for pieces, its
    // second half for sums.
    template <class T> int reduce_by_shares(T* x, long count) {
        const long length = slot_bytes / 2 / static_cast<long>(sizeof(T)), pieces = (count + length - 1) / length;
        const auto piece = [&](long i) { return x + i * length; };
        const auto bound = [&](long i, int share) {
            const long whole = std::min(length, count - i * length);
            return share == size ? whole : whole * share / size / 16 * 16;
        };
        const auto handed = [&](uint32_t at, int owner) { return reinterpret_cast<T*>(slot(at, owner)); };
        const auto summed = [&](uint32_t at, int owner) { return handed(at, owner) + length; };
        const auto collect = [&](long i, uint32_t at) {
            for (int peer = 0; peer < size; ++peer) {
                const long first = bound(i, peer), last = bound(i, peer + 1);
                if (peer != rank) std::memcpy(piece(i) + first, summed(at, peer), (last - first) * sizeof(T));
            }
        };
        for (long i = 0; i <= pieces; ++i) {
            if (const int outcome = begin()) return outcome;
            if (i < pieces) {
                const long first = bound(i, rank), last = bound(i, rank + 1);
                T* out = handed(operation, rank);
                std::memcpy(out, piece(i), first * sizeof(T));
                std::memcpy(out + last, piece(i) + last, (bound(i, size) - last) * sizeof(T));
            }
            if (i > 0) {
                const long first = bound(i - 1, rank), last = bound(i - 1, rank + 1);
                T* own = piece(i - 1) + first;
                for (int peer = 0; peer < size; ++peer) {
                    parts[peer] = reinterpret_cast<const char*>(handed(operation - 1, peer) + first);
                }
                parts[rank] = reinterpret_cast<const char*>(own);
                sum(last - first, own, summed(operation, rank));
            }
            if (i > 1) collect(i - 2, operation - 1);
            publish();
        }
        if (const int outcome = meeting.await_all(operation)) return outcome;
        collect(pieces - 1, operation);
        return MET;
    }

    template <class T> int all_reduce(T* x, long count) {
        const long bytes = count * static_cast<long>(sizeof(T));
        if (bytes == 0) return MET;
        return bytes <= std::min(ONE_SHOT_BYTES, slot_bytes) ? reduce_at_once(x, count) : reduce_by_shares(x, count);
    }

    const int size, rank;
    const long slot_bytes;
    Mapping mapping;
    Meeting meeting;
    uint32_t operation = 0;
    std::vector<const char*> parts;
    std::vector<int32_t> inbox;
};

long phx_group_bytes(int size, long slot_bytes) { return data_offset(size) + 2 * size * slot_bytes; }

PhxGroup* phx_group_open(int file, int size, int rank, long slot_bytes, double timeout_s, double spin_us) {
    auto group = std::make_unique<PhxGroup>(file, size, rank, slot_bytes, timeout_s, spin_us);
    return group->mapping.address() ? group.release() : nullptr;
}

void phx_group_close(PhxGroup* group) { delete group; }

void phx_group_abort(PhxGroup* group) { group->meeting.abort(); }

uint32_t phx_group_operations(const PhxGroup* group) { return group->meeting.reached(); }

double phx_group_waited(const PhxGroup* group) { return static_cast<double>(group->meeting.waited_ns()) * 1e-9; }

void phx_group_stall(const PhxGroup* group, PhxStall* stall) {
    const Stall& found = group->meeting.stall();
    *stall = {found.peer, found.wanted, found.reached, found.seconds};
}

int phx_all_reduce_f32(void* group, float* x, long count) { return static_cast<PhxGroup*>(group)->all_reduce(x, count); }

int phx_all_reduce_bf16(PhxGroup* group, uint16_t* x, long count) { return group->all_reduce(x, count); }

int phx_all_gather(PhxGroup* group, const void* x, void* out, long bytes) {
    for (long start = 0; start < bytes; start += group->slot_bytes) {
        const long width = std::min(group->slot_bytes, bytes - start);
        if (const int outcome = group->begin()) return outcome;
        std::memcpy(group->slot(group->operation, group->rank), static_cast<const char*>(x) + start, width);
        group->publish();
        for (int peer = 0; peer < group->size; ++peer) {
            if (const int outcome = group->meeting.await(peer, group->operation)) return outcome;
            std::memcpy(static_cast<char*>(out) + peer * bytes + start, group->slot(group->operation, peer), width);
        }
    }
    return MET;
}

int phx_hand_out(PhxGroup* group, void* x, long bytes) {
    for (long start = 0; start < bytes; start += group->slot_bytes) {
        const long width = std::min(group->slot_bytes, bytes - start);
        char* piece = static_cast<char*>(x) + start;
        if (const int outcome = group->begin()) return outcome;
        char* slot = group->slot(group->operation, 0);
        if (group->rank == 0) std::memcpy(slot, piece, width);
        group->publish();
        if (group->rank == 0) continue;
        if (const int outcome = group->meeting.await(0, group->operation, true)) return outcome;
        std::memcpy(piece, slot, width);
    }
    return MET;
}

int phx_broadcast(PhxGroup* group, const int32_t** words, long* count) {
    const Uncounted waits(group->meeting);  // for work, when there is none
    const long room = group->slot_bytes / 4 - HEADER_WORDS;
    long done = 0, total = 0;
    do {  // an empty message is a message too
        if (const int outcome = group->begin(true)) return outcome;
        int32_t* slot = reinterpret_cast<int32_t*>(group->slot(group->operation, 0));
        if (group->rank == 0) {
            total = *count;
            const long width = std::min(room, total - done);
            std::memcpy(slot, &total, sizeof total);
            if (width) std::memcpy(slot + HEADER_WORDS, *words + done, width * 4);
            group->publish();
            done += width;
            continue;
        }
        group->publish();
        if (const int outcome = group->meeting.await(0, group->operation, true)) return outcome;
        std::memcpy(&total, slot, sizeof total);
        const long width = std::min(room, total - done);
        group->inbox.resize(total);
        if (width) std::memcpy(group->inbox.data() + done, slot + HEADER_WORDS, width * 4);
        done += width;
    } while (done < total);
    if (group->rank > 0) {
        *words = group->inbox.data();
        *count = total;
    }
    return MET;
}
