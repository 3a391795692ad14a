#include "reservation.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <string>
#include <system_error>

namespace simt {

std::size_t page_size() {
    static const auto size = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    return size;
}

Reservation::Reservation(std::size_t bytes, std::size_t alignment) : bytes_(bytes), mapped_bytes_(bytes + alignment) {
    void* const mapping =
        mmap(nullptr, mapped_bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping == MAP_FAILED) {
        throw std::system_error(errno, std::generic_category(),
                                "reserving " + std::to_string(mapped_bytes_) + " bytes for the simulator");
    }
    mapping_ = static_cast<char*>(mapping);
    begin_ =
        mapping_ + (round_up(reinterpret_cast<uintptr_t>(mapping_), alignment) - reinterpret_cast<uintptr_t>(mapping_));
}

Reservation::~Reservation() { munmap(mapping_, mapped_bytes_); }

void Reservation::forbid(std::size_t offset, std::size_t bytes) { mprotect(begin_ + offset, bytes, PROT_NONE); }

}  // namespace simt
