// Times mfa_encode from C++: called from Python, the call itself would be most of what is timed.
#include <chrono>

#include "csrc/mfa.h"

// Microseconds of one call among so many, each of which encodes the same launch; negative if one failed.
extern "C" double encode_loop(void* encoder, const MFALaunch* launch, int calls) {
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) {
        if (mfa_encode(encoder, launch, 1) != MFA_OK) return -1;
    }
    const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - start;
    return spent.count() / calls;
}
