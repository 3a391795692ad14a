// The classes of Apple's Foundation that PyTorch's MPS headers name, for compiling without Apple's SDK.
#pragma once

#include <dispatch/dispatch.h>
#include <objc/NSObject.h>

@interface NSArray<ObjectType> : NSObject
@end

@interface NSDictionary<KeyType, ObjectType> : NSObject
@end
