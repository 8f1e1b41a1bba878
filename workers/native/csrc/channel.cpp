// A ring of bytes. Either side has reached the number of bytes that it has written or read, which wraps around at 2^32
// as the ring's capacity, a power of two, divides that.
#include <algorithm>
#include <cstring>
#include <memory>

#include "collectives.h"
#include "mapping.h"
#include "meeting.h"

using namespace phx;

namespace {

constexpr long DATA = 4096;
constexpr long PIECE = 64 << 10;  // so that one side copies while the other still does
constexpr int SENDER = 0, RECEIVER = 1;

}  // namespace

struct PhxChannel {
    PhxChannel(int file, bool sends, long capacity, double timeout_s, double spin_us)
        : mapping(file, phx_channel_bytes(capacity)), capacity(capacity), piece(std::min(PIECE, capacity / 2)),
          meeting(reinterpret_cast<Board*>(mapping.address()), 2, sends ? SENDER : RECEIVER, timeout_s,
                  static_cast<long>(spin_us * 1e3)) {}

    // Calls copy(place in the ring, place in the message, bytes) for the next `bytes` of the ring, which may wrap.
    template <class Copy> void visit(long start, long bytes, Copy copy) const {
        const long place = at & (capacity - 1), first = std::min(bytes, capacity - place);
        char* ring = mapping.address() + DATA;
        copy(ring + place, start, first);
        if (first < bytes) copy(ring, start + first, bytes - first);
    }

    Mapping mapping;
    const long capacity, piece;
    Meeting meeting;
    uint32_t at = 0;
};

long phx_channel_bytes(long capacity) { return DATA + capacity; }

PhxChannel* phx_channel_open(int file, int sends, long capacity, double timeout_s, double spin_us) {
    auto channel = std::make_unique<PhxChannel>(file, sends != 0, capacity, timeout_s, spin_us);
    return channel->mapping.address() ? channel.release() : nullptr;
}

void phx_channel_close(PhxChannel* channel) { delete channel; }

void phx_channel_abort(PhxChannel* channel) { channel->meeting.abort(); }

void phx_channel_stall(const PhxChannel* channel, PhxStall* stall) {
    const Stall& found = channel->meeting.stall();
    *stall = {found.peer, found.wanted, found.reached, found.seconds};
}

int phx_channel_send(PhxChannel* channel, const void* message, long bytes) {
    for (long start = 0; start < bytes; start += channel->piece) {
        const long width = std::min(channel->piece, bytes - start);
        const uint32_t end = channel->at + static_cast<uint32_t>(width);
        if (const int outcome = channel->meeting.await(RECEIVER, end - static_cast<uint32_t>(channel->capacity), true)) {
            return outcome;
        }
        channel->visit(start, width, [&](char* ring, long from, long count) {
            std::memcpy(ring, static_cast<const char*>(message) + from, count);
        });
        channel->at = end;
        channel->meeting.reach(end);
    }
    return MET;
}

int phx_channel_receive(PhxChannel* channel, void* message, long bytes) {
    for (long start = 0; start < bytes; start += channel->piece) {
        const long width = std::min(channel->piece, bytes - start);
        const uint32_t end = channel->at + static_cast<uint32_t>(width);
        if (const int outcome = channel->meeting.await(SENDER, end, true)) return outcome;
        channel->visit(start, width, [&](char* ring, long to, long count) {
            std::memcpy(static_cast<char*>(message) + to, ring, count);
        });
        channel->at = end;
        channel->meeting.reach(end);
    }
    return MET;
}
