// Address space reserved from the system. Pages take memory once they are touched.
#pragma once

#include <cstddef>

namespace simt {

std::size_t page_size();

inline std::size_t round_up(std::size_t value, std::size_t multiple) {
    return (value + multiple - 1) / multiple * multiple;
}

class Reservation {
  public:
    // `bytes`, at an address that is a multiple of `alignment`; both multiples of the page size.
    Reservation(std::size_t bytes, std::size_t alignment);
    ~Reservation();
    Reservation(const Reservation&) = delete;
    Reservation& operator=(const Reservation&) = delete;

    char* begin() const { return begin_; }
    std::size_t bytes() const { return bytes_; }

    // Makes every access to these bytes, whole pages, a fault. Best effort: the system limits the number of mappings.
    void forbid(std::size_t offset, std::size_t bytes);

  private:
    std::size_t bytes_;
    char* mapping_;
    std::size_t mapped_bytes_;
    char* begin_;
};

}  // namespace simt
