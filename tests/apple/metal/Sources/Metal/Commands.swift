import Foundation

/// A dispatch with everything bound at that moment; it keeps the memory alive, as a command buffer does.
struct Dispatch {
    enum Binding {
        case buffer(Memory, offset: Int)
        case bytes([UInt8])
    }

    let pipeline: SimulatedPipeline
    let bindings: [Binding?]
    let threads: [UInt32]
    let group: [UInt32]

    func execute() -> String? {
        var copies: [UnsafeMutableRawPointer] = []
        defer { copies.forEach { $0.deallocate() } }
        var addresses: [UnsafeMutableRawPointer?] = []
        var lengths: [UInt64] = []
        for binding in bindings {
            switch binding {
            case nil:
                addresses.append(nil)
                lengths.append(0)
            case .buffer(let memory, let offset):
                addresses.append(memory.address + offset)
                lengths.append(UInt64(memory.bytes - offset))
            case .bytes(let bytes):
                let copy = UnsafeMutableRawPointer.allocate(byteCount: bytes.count, alignment: 16)
                bytes.withUnsafeBytes { copy.copyMemory(from: $0.baseAddress!, byteCount: $0.count) }
                copies.append(copy)
                addresses.append(copy)
                lengths.append(UInt64(bytes.count))
            }
        }
        return Executor.shared.launch(pipeline.kernel, addresses, lengths, threads, group)
    }
}

final class SimulatedCommandQueue: NSObject, MTLCommandQueue {
    func makeCommandBuffer() -> (any MTLCommandBuffer)? { SimulatedCommandBuffer() }
}

/// Runs its dispatches, in order, when it is committed.
final class SimulatedCommandBuffer: NSObject, MTLCommandBuffer {
    private(set) var status = MTLCommandBufferStatus.notEnqueued
    private(set) var error: (any Error)?
    /// What the validation found in this buffer and its encoders.
    private(set) var faults: [String] = []

    private var dispatches: [Dispatch] = []
    private var hasOpenEncoder = false

    func makeComputeCommandEncoder(dispatchType: MTLDispatchType) -> (any MTLComputeCommandEncoder)? {
        if hasOpenEncoder { report("makeComputeCommandEncoder: another encoder of this command buffer is open") }
        if status != .notEnqueued { report("makeComputeCommandEncoder: the command buffer was committed") }
        hasOpenEncoder = true
        return SimulatedComputeEncoder(self)
    }

    func commit() {
        if hasOpenEncoder { report("commit: an encoder of this command buffer is open") }
        if status != .notEnqueued { return report("commit: the command buffer was committed before") }
        status = .committed
        if !faults.isEmpty { return fail(faults.joined(separator: "\n")) }
        for dispatch in dispatches where Executor.shared.executes {
            if let reason = dispatch.execute() { return fail(reason) }
            Counts.shared.add(\.executed)
        }
        dispatches = []
        status = .completed
    }

    func waitUntilCompleted() {
        if status == .notEnqueued { report("waitUntilCompleted: the command buffer was not committed") }
    }

    func append(_ dispatch: Dispatch) { dispatches.append(dispatch) }
    func encoderEnded() { hasOpenEncoder = false }

    func report(_ fault: String) {
        faults.append(fault)
        Validation.shared.report(fault)
    }

    private func fail(_ words: String) {
        dispatches = []
        status = .error
        error = failure(MTLCommandBufferErrorDomain, MTLCommandBufferError.Code.internal.rawValue, words)
    }
}
