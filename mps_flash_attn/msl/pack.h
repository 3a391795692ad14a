// What a lane moves at once: a pack of PACK elements, which is 16 bytes, or a single element where rows are not
// aligned.
//
// Define: PACK, 1 or as many elements as make 16 bytes of the smallest type that is moved. Other types share its packs:
// they take as many chunks as they need.
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

template <typename T>
inline Pack<T> fill_pack(T value) {
    Pack<T> pack;
    for (short i = 0; i < PACK; i++) pack.at[i] = value;
    return pack;
}
// The same values in another type.
template <typename To, typename From>
inline Pack<To> convert_pack(Pack<From> values) {
    Pack<To> converted;
    for (short i = 0; i < PACK; i++) converted.at[i] = To(values.at[i]);
    return converted;
}
// What tensors of any type hold, as numbers to compute with.
template <typename T>
inline Pack<accum> load_values(const device T* source) {
    return convert_pack<accum>(load_pack(source));
}
template <typename T>
inline void store_values(device T* target, Pack<accum> values) {
    store_pack(target, convert_pack<T>(values));
}
