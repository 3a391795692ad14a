// What a lane moves at once: a pack of PACK elements, which is 16 bytes, or a single element where rows are not
// aligned.
//
// Define: PACK, 1 or CHUNK_ELEMENTS. Other types may share its packs: they then take as many chunks as they need.
#pragma once

#include "msl/types.h"

template <typename T>
struct alignas(PACK > 1 ? sizeof(chunk) : sizeof(T)) Pack {
    T at[PACK];
};

#if PACK > 1
template <typename T>
inline Pack<T> load_pack(const device T* source) {
    Pack<T> pack;
    for (short n = 0; n < short(sizeof(pack) / sizeof(chunk)); n++)
        ((thread chunk*)&pack)[n] = ((const device chunk*)source)[n];
    return pack;
}
template <typename T>
inline void store_pack(device T* target, Pack<T> pack) {
    for (short n = 0; n < short(sizeof(pack) / sizeof(chunk)); n++)
        ((device chunk*)target)[n] = ((const thread chunk*)&pack)[n];
}
#else
template <typename T>
inline Pack<T> load_pack(const device T* source) {
    Pack<T> pack;
    pack.at[0] = source[0];
    return pack;
}
template <typename T>
inline void store_pack(device T* target, Pack<T> pack) {
    target[0] = pack.at[0];
}
#endif
