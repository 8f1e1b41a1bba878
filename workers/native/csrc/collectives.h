// Collectives between the ranks of a stage on one host, and one-way channels between stages, in shared memory.
//
// A file of zeros, of as many bytes as `..._bytes` says, is mapped by everyone. Functions that return int return 0, 1
// when a peer did not come within the timeout, or 2 after `..._abort`; `..._stall` then tells who was waited for.
// Every rank calls the same operations in the same order, one thread at a time; `..._abort` is for other threads.
#pragma once

#include <cstdint>

extern "C" {

struct PhxStall {
    int peer;                  // rank of the stage; in a channel 0 sends and 1 receives
    uint32_t wanted, reached;  // numbers of operations; in a channel, of bytes
    double seconds;            // that were waited
};

struct PhxGroup;
long phx_group_bytes(int size, long slot_bytes);
// `slot_bytes`, a multiple of 256, bounds what goes between two ranks at once; larger messages go in pieces. Threads
// spin for `spin_us` before they sleep. Null when the file cannot be mapped (see errno).
PhxGroup* phx_group_open(int file, int size, int rank, long slot_bytes, double timeout_s, double spin_us);
void phx_group_close(PhxGroup* group);
void phx_group_abort(PhxGroup* group);
// How many operations this rank has reached; for any thread.
uint32_t phx_group_operations(const PhxGroup* group);
// Seconds that it waited for others in sums and gathers: a straggler waits least. For any thread.
double phx_group_waited(const PhxGroup* group);
void phx_group_stall(const PhxGroup* group, PhxStall* stall);

// Sums over the ranks, in place, in the order of the ranks and in float32: the bits are the same on all ranks. The
// first one fits `PhxReducer`, with the group as its `self`.
int phx_all_reduce_f32(void* group, float* x, long count);
int phx_all_reduce_bf16(PhxGroup* group, uint16_t* x, long count);
// `out` [size, bytes]: everyone's x in the order of the ranks.
int phx_all_gather(PhxGroup* group, const void* x, void* out, long bytes);
// Rank 0's x, in place; all ranks know its size.
int phx_hand_out(PhxGroup* group, void* x, long bytes);
// Rank 0's `words`. Elsewhere both are set; the words are the group's, until the next broadcast.
int phx_broadcast(PhxGroup* group, const int32_t** words, long* count);

struct PhxChannel;
long phx_channel_bytes(long capacity);
// A queue of `capacity` bytes (a power of two) from one process to another. To send more than fits waits for the
// receiver.
PhxChannel* phx_channel_open(int file, int sends, long capacity, double timeout_s, double spin_us);
void phx_channel_close(PhxChannel* channel);
void phx_channel_abort(PhxChannel* channel);
void phx_channel_stall(const PhxChannel* channel, PhxStall* stall);
int phx_channel_send(PhxChannel* channel, const void* message, long bytes);
int phx_channel_receive(PhxChannel* channel, void* message, long bytes);

}
