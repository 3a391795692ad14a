// Memory of the pretend device.
#pragma once

#include <c10/core/Allocator.h>

#include <cstddef>

namespace pretend {

// As on a Mac, the data pointer of its storages is the buffer object, not the address of the bytes.
c10::Allocator* allocator();

// Makes allocations fail beyond so many bytes in all.
void limit_memory(std::size_t bytes);

std::size_t allocated_bytes();

}  // namespace pretend
