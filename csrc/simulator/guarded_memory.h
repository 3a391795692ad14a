// Copies of a launch's buffers between wide gaps of address space, so that an access outside of them can be told
// from any other and blamed on the nearest one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "reservation.h"

namespace simt {

// Memory that a kernel may reach through an argument.
struct Buffer {
    std::string name;  // "buffer 2 'out'"
    void* address;
    std::size_t bytes;
    uint32_t element;  // bytes of one element
    bool is_constant;  // passed by value or in the constant address space
    // One character for each element between the first and the last, 0 for those that lie in between but are no part
    // of the tensor. Empty when all are.
    std::string elements;
};

// A stretch of memory with all the buffers that overlap in it.
class Region {
  public:
    Region(char* source, std::size_t bytes);

    const std::string& name() const { return name_; }
    char* begin() const { return begin_; }
    std::size_t bytes() const { return bytes_; }
    uint32_t element() const { return element_; }
    bool is_constant() const { return is_constant_; }

    bool contains(const char* address, std::size_t bytes) const {
        return address >= begin_ && bytes <= bytes_ && address - begin_ <= static_cast<std::ptrdiff_t>(bytes_ - bytes);
    }
    // Whether all of some bytes inside of the region belong to a buffer.
    bool owns(const char* address, std::size_t bytes) const;
    // Whether an address outside of the region belongs to the gaps around it.
    bool is_nearest(const char* address) const;

    void* translate(const void* original) const { return begin_ + (static_cast<const char*>(original) - source_); }
    void add_buffer(const Buffer& buffer);
    void copy_in();
    void copy_out() const;

  private:
    std::string name_;
    char* source_;
    std::size_t bytes_;
    uint32_t element_;
    bool is_constant_;
    std::string owned_;  // one character a byte: 1 for those that belong to a buffer
    std::unique_ptr<Reservation> memory_;
    char* begin_;
};

// The regions of all buffers of a launch.
class GuardedMemory {
  public:
    explicit GuardedMemory(std::vector<Buffer> buffers);

    std::vector<Region>& regions() { return regions_; }
    // Where the memory of a buffer is copied to.
    void* translated(std::size_t buffer) const;

  private:
    std::vector<Region> regions_;
    std::vector<std::size_t> region_of_;
    std::vector<Buffer> buffers_;
};

}  // namespace simt
