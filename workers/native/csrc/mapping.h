// A file in memory that several processes of this host map.
#pragma once

#include <sys/mman.h>

namespace phx {

class Mapping {
  public:
    // `address` is null when the file cannot be mapped; errno says why.
    Mapping(int file, long bytes) : bytes_(bytes) {
        void* found = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        address_ = found == MAP_FAILED ? nullptr : static_cast<char*>(found);
    }
    ~Mapping() {
        if (address_) munmap(address_, bytes_);
    }
    Mapping(const Mapping&) = delete;
    Mapping& operator=(const Mapping&) = delete;

    char* address() const { return address_; }

  private:
    char* address_;
    long bytes_;
};

}  // namespace phx
