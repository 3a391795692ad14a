import CStandin
import Foundation

/// Counts of what happened, for tests.
final class Counts {
    static let shared = Counts()

    private let lock = NSLock()
    private var values = StandinCounts()

    var snapshot: StandinCounts { lock.withLock { values } }

    func add(_ count: WritableKeyPath<StandinCounts, UInt64>, _ amount: Int = 1) {
        lock.withLock { values[keyPath: count] &+= UInt64(bitPattern: Int64(amount)) }
    }
}

/// A GPU with an M1's limits.
final class SimulatedDevice: NSObject, MTLDevice {
    static let shared = SimulatedDevice()

    let name = ProcessInfo.processInfo.environment["STANDIN_GPU_NAME"] ?? "Simulated GPU"
    let registryID: UInt64 = 1
    let hasUnifiedMemory = true
    let recommendedMaxWorkingSetSize: UInt64 = 8 << 30
    let maxThreadsPerThreadgroup = MTLSize(width: 1024, height: 1024, depth: 1024)
    let maxThreadgroupMemoryLength = 32 << 10
    let maxBufferLength = 4 << 30

    func supportsFamily(_ gpuFamily: MTLGPUFamily) -> Bool {
        switch gpuFamily {
        case .apple8, .apple9: return false
        default: return true
        }
    }

    func makeCommandQueue() -> (any MTLCommandQueue)? { SimulatedCommandQueue() }

    func makeBuffer(length: Int, options: MTLResourceOptions) -> (any MTLBuffer)? {
        guard length > 0, length <= maxBufferLength, let memory = Memory(bytes: length) else { return nil }
        return SimulatedBuffer(memory)
    }

    func makeLibrary(source: String, options: MTLCompileOptions?) throws -> any MTLLibrary {
        Counts.shared.add(\.libraries)
        let (library, kernels) = try Executor.shared.translate(source)
        return SimulatedLibrary(number: library, source: source, kernels: kernels)
    }

    func makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor) throws -> any MTLBinaryArchive {
        try SimulatedArchive(url: descriptor.url)
    }

    func makeComputePipelineState(
        descriptor: MTLComputePipelineDescriptor, options: MTLPipelineOption,
        reflection: UnsafeMutableRawPointer?
    ) throws -> any MTLComputePipelineState {
        guard let function = descriptor.computeFunction as? SimulatedFunction else {
            Validation.shared.report("makeComputePipelineState: computeFunction is nil")
            throw failure(MTLLibraryErrorDomain, MTLLibraryError.Code.internal.rawValue, "computeFunction is nil")
        }
        let archives = (descriptor.binaryArchives ?? []).compactMap { $0 as? SimulatedArchive }
        if archives.contains(where: { $0.holds(function) }) {
            Counts.shared.add(\.pipelines_loaded)
        } else if options.contains(.failOnBinaryArchiveMiss) {
            throw failure(
                MTLBinaryArchiveDomain, MTLBinaryArchiveError.Code.compilationFailure.rawValue,
                "no archive holds \(function.name)")
        } else {
            Counts.shared.add(\.pipelines_compiled)
        }
        let kernel = try Executor.shared.build(function.library.number, function.name)
        return SimulatedPipeline(label: descriptor.label, function: function, kernel: kernel)
    }
}

final class SimulatedLibrary: NSObject, MTLLibrary {
    let number: Int64
    let source: String
    private let kernels: [KernelDescription]

    init(number: Int64, source: String, kernels: [KernelDescription]) {
        self.number = number
        self.source = source
        self.kernels = kernels
    }

    var functionNames: [String] { kernels.map(\.name) }

    func makeFunction(name functionName: String) -> (any MTLFunction)? {
        kernels.first { $0.name == functionName }.map { SimulatedFunction(library: self, description: $0) }
    }
}

final class SimulatedFunction: NSObject, MTLFunction {
    let library: SimulatedLibrary
    let parameters: [Parameter]
    let name: String

    init(library: SimulatedLibrary, description: KernelDescription) {
        self.library = library
        parameters = description.buffers
        name = description.name
    }
}

final class SimulatedPipeline: NSObject, MTLComputePipelineState {
    let label: String?
    let function: SimulatedFunction
    /// The executor's number; 0 if it runs nothing.
    let kernel: Int64
    let maxTotalThreadsPerThreadgroup = 1024
    let threadExecutionWidth = 32
    let staticThreadgroupMemoryLength = 0

    init(label: String?, function: SimulatedFunction, kernel: Int64) {
        self.label = label
        self.function = function
        self.kernel = kernel
    }
}
