// The protocols and classes of Apple's Metal that PyTorch's MPS headers name.
#pragma once

#include <Foundation/Foundation.h>

@protocol MTLDevice <NSObject>
@end

@protocol MTLCommandQueue <NSObject>
- (id<MTLDevice>)device;
@end

@protocol MTLCommandBuffer <NSObject>
@end

@protocol MTLComputeCommandEncoder <NSObject>
@end

@protocol MTLSharedEvent <NSObject>
@end

@protocol MTLBuffer <NSObject>
@end

typedef void (^MTLCommandBufferHandler)(id<MTLCommandBuffer>);
