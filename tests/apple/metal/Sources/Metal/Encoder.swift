import Foundation

/// Checks what Metal's API validation checks; a call that it refuses has no effect but the report.
final class SimulatedComputeEncoder: NSObject, MTLComputeCommandEncoder, Releasable {
    private static let bufferCount = 31
    private static let mostBytes = 4096
    private static let threadgroupAlignment = 16

    let commandBuffer: SimulatedCommandBuffer
    private var isOpen = true
    private var isReleased = false
    private var pipeline: SimulatedPipeline?
    private var bindings = [Dispatch.Binding?](repeating: nil, count: bufferCount)
    private var threadgroupBytes: [Int: Int] = [:]

    init(_ commandBuffer: SimulatedCommandBuffer) { self.commandBuffer = commandBuffer }

    func setComputePipelineState(_ state: any MTLComputePipelineState) {
        guard accepts("setComputePipelineState") else { return }
        pipeline = state as? SimulatedPipeline
    }

    func setBuffer(_ buffer: (any MTLBuffer)?, offset: Int, index: Int) {
        guard accepts("setBuffer"), accepts("setBuffer", index) else { return }
        guard let buffer = buffer as? SimulatedBuffer else { return bindings[index] = nil }
        guard let memory = buffer.memory else { return report("setBuffer: buffer \(index) was released") }
        guard offset >= 0, offset < memory.bytes else {
            return report("setBuffer: offset \(offset) of buffer \(index) is beyond its \(memory.bytes) bytes")
        }
        bindings[index] = .buffer(memory, offset: offset)
    }

    func setBytes(_ bytes: UnsafeRawPointer, length: Int, index: Int) {
        guard accepts("setBytes"), accepts("setBytes", index) else { return }
        guard 1...Self.mostBytes ~= length else {
            return report("setBytes: \(length) bytes for buffer \(index); 1 to \(Self.mostBytes) are allowed")
        }
        bindings[index] = .bytes([UInt8](UnsafeRawBufferPointer(start: bytes, count: length)))
    }

    func setThreadgroupMemoryLength(_ length: Int, index: Int) {
        guard accepts("setThreadgroupMemoryLength"), accepts("setThreadgroupMemoryLength", index) else { return }
        guard length % Self.threadgroupAlignment == 0 else {
            return report("setThreadgroupMemoryLength: \(length) is no multiple of \(Self.threadgroupAlignment)")
        }
        threadgroupBytes[index] = length
    }

    func memoryBarrier(scope: MTLBarrierScope) {
        guard accepts("memoryBarrier") else { return }
        Counts.shared.add(\.barriers)
    }

    func dispatchThreadgroups(_ threadgroupsPerGrid: MTLSize, threadsPerThreadgroup group: MTLSize) {
        let grid = MTLSize(
            width: threadgroupsPerGrid.width * group.width, height: threadgroupsPerGrid.height * group.height,
            depth: threadgroupsPerGrid.depth * group.depth)
        dispatchThreads(grid, threadsPerThreadgroup: group)
    }

    func dispatchThreads(_ grid: MTLSize, threadsPerThreadgroup group: MTLSize) {
        guard accepts("dispatchThreads") else { return }
        guard let pipeline else { return report("dispatchThreads: no pipeline is set") }
        let name = "dispatchThreads of \(pipeline.function.name)"
        guard grid.width > 0, grid.height > 0, grid.depth > 0 else { return report("\(name): the grid is empty") }
        let threads = group.width * group.height * group.depth
        guard 1...pipeline.maxTotalThreadsPerThreadgroup ~= threads else {
            return report("\(name): \(threads) threads; 1 to \(pipeline.maxTotalThreadsPerThreadgroup) are allowed")
        }
        let device = SimulatedDevice.shared
        let shared = threadgroupBytes.values.reduce(pipeline.staticThreadgroupMemoryLength, +)
        guard shared <= device.maxThreadgroupMemoryLength else {
            return report(
                "\(name): \(shared) bytes of threadgroup memory; at most \(device.maxThreadgroupMemoryLength) are allowed"
            )
        }
        for parameter in pipeline.function.parameters {
            switch bindings[parameter.index] {
            case nil:
                return report("\(name): buffer \(parameter.index) is not bound")
            case .buffer(_, let offset) where offset % parameter.bytes != 0:
                return report(
                    "\(name): offset \(offset) of buffer \(parameter.index) is no multiple of \(parameter.bytes)")
            default:
                break
            }
        }
        Counts.shared.add(\.dispatches)
        let last = (pipeline.function.parameters.map(\.index).max() ?? -1) + 1
        commandBuffer.append(
            Dispatch(
                pipeline: pipeline, bindings: Array(bindings.prefix(last)),
                threads: [grid.width, grid.height, grid.depth].map(UInt32.init),
                group: [group.width, group.height, group.depth].map(UInt32.init)))
    }

    func endEncoding() {
        guard accepts("endEncoding") else { return }
        isOpen = false
        commandBuffer.encoderEnded()
    }

    func release() {
        if isOpen { report("release: the encoder is open") }
        isReleased = true
        pipeline = nil
        bindings = []
    }

    private func accepts(_ call: String) -> Bool {
        if isReleased {
            report("\(call): the encoder was released")
        } else if !isOpen {
            report("\(call): encoding has ended")
        }
        return isOpen && !isReleased
    }

    private func accepts(_ call: String, _ index: Int) -> Bool {
        if 0..<Self.bufferCount ~= index { return true }
        report("\(call): index \(index); there are 0 to \(Self.bufferCount - 1)")
        return false
    }

    private func report(_ fault: String) { commandBuffer.report(fault) }
}
