// The classes of Apple's MetalPerformanceShadersGraph that PyTorch's stream names.
#pragma once

#include <Metal/Metal.h>

@interface MPSGraph : NSObject
@end

@interface MPSGraphExecutionDescriptor : NSObject
@end

@interface MPSGraphCompilationDescriptor : NSObject
@end
