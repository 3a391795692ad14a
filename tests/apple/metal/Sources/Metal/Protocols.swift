// Metal's protocols, with the methods that this project or its tests call.
import Foundation

public protocol MTLDevice: NSObjectProtocol {
    var name: String { get }
    var registryID: UInt64 { get }
    var hasUnifiedMemory: Bool { get }
    var recommendedMaxWorkingSetSize: UInt64 { get }
    var maxThreadsPerThreadgroup: MTLSize { get }
    var maxThreadgroupMemoryLength: Int { get }
    var maxBufferLength: Int { get }
    func supportsFamily(_ gpuFamily: MTLGPUFamily) -> Bool
    func makeCommandQueue() -> (any MTLCommandQueue)?
    func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)?
    func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary
    func makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor) throws -> any MTLBinaryArchive
    func makeComputePipelineState(
        descriptor: MTLComputePipelineDescriptor, options: MTLPipelineOption,
        reflection: UnsafeMutableRawPointer?
    ) throws -> any MTLComputePipelineState
}

public protocol MTLLibrary: NSObjectProtocol {
    var functionNames: [String] { get }
    func makeFunction(name functionName: String) -> (any MTLFunction)?
}

public protocol MTLFunction: NSObjectProtocol {
    var name: String { get }
}

public protocol MTLComputePipelineState: NSObjectProtocol {
    var label: String? { get }
    var maxTotalThreadsPerThreadgroup: Int { get }
    var threadExecutionWidth: Int { get }
    var staticThreadgroupMemoryLength: Int { get }
}

public protocol MTLBinaryArchive: NSObjectProtocol {
    func addComputePipelineFunctions(descriptor: MTLComputePipelineDescriptor) throws
    func serialize(to url: URL) throws
}

public protocol MTLBuffer: NSObjectProtocol {
    var length: Int { get }
    func contents() -> UnsafeMutableRawPointer
}

public protocol MTLCommandQueue: NSObjectProtocol {
    func makeCommandBuffer() -> (any MTLCommandBuffer)?
}

public protocol MTLCommandBuffer: NSObjectProtocol {
    var status: MTLCommandBufferStatus { get }
    var error: (any Error)? { get }
    func makeComputeCommandEncoder(dispatchType: MTLDispatchType) -> (any MTLComputeCommandEncoder)?
    func commit()
    func waitUntilCompleted()
}

public protocol MTLComputeCommandEncoder: NSObjectProtocol {
    func setComputePipelineState(_ state: any MTLComputePipelineState)
    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int)
    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int)
    func setThreadgroupMemoryLength(_ length: Int, index: Int)
    func memoryBarrier(scope: MTLBarrierScope)
    func dispatchThreads(_ threadsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize)
    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup: MTLSize)
    func endEncoding()
}

public func MTLCreateSystemDefaultDevice() -> (any MTLDevice)? { SimulatedDevice.shared }

/// What Objective-C's runtime has on a Mac: here objects are freed when their last reference goes.
public func autoreleasepool<Result>(invoking body: () throws -> Result) rethrows -> Result { try body() }
