import Foundation

/// An encoder that takes every call and does nothing, so that what it costs to call one can be timed.
final class IdleComputeEncoder: NSObject, MTLComputeCommandEncoder, Releasable {
    func setComputePipelineState(_ state: any MTLComputePipelineState) {}
    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int) {}
    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int) {}
    func setThreadgroupMemoryLength(_ length: Int, index: Int) {}
    func memoryBarrier(scope: MTLBarrierScope) {}
    func dispatchThreads(_ threadsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize) {}
    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize) {}
    func endEncoding() {}
    func release() {}
}
