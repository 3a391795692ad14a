// The class of Apple's MetalPerformanceShaders that PyTorch's stream names.
#pragma once

#include <Metal/Metal.h>

@interface MPSCommandBuffer : NSObject
@end
