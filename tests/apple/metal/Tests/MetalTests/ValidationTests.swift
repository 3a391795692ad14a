import Foundation
import Metal
import XCTest

/// Each thing that Metal's API validation refuses is planted once, and found.
final class ValidationTests: XCTestCase {
    private let device = MTLCreateSystemDefaultDevice()!
    private var commands: (any MTLCommandBuffer)!
    private var encoder: (any MTLComputeCommandEncoder)!
    private var pipeline: (any MTLComputePipelineState)!
    private var buffer: (any MTLBuffer)!

    override func setUpWithError() throws {
        while standinTakeFault() != nil {}
        let library = try device.makeLibrary(source: "kernel void k(device float* x) {}", options: nil)
        let descriptor = MTLComputePipelineDescriptor()
        descriptor.computeFunction = library.makeFunction(name: "k")
        pipeline = try device.makeComputePipelineState(descriptor: descriptor, options: [], reflection: nil)
        buffer = device.makeBuffer(length: 64, options: .storageModeShared)
        commands = device.makeCommandQueue()!.makeCommandBuffer()
        encoder = commands.makeComputeCommandEncoder(dispatchType: .serial)
    }

    /// A dispatch of so many threads.
    private func dispatch(grid: Int = 1, group: Int = 1) {
        encoder.dispatchThreads(
            MTLSize(width: grid, height: 1, depth: 1), threadsPerThreadgroup: MTLSize(width: group, height: 1, depth: 1)
        )
    }

    private func finish() {
        encoder.endEncoding()
        commands.commit()
        commands.waitUntilCompleted()
    }

    private func assertFound(_ words: String, file: StaticString = #filePath, line: UInt = #line) {
        let fault = standinTakeFault().map { String(cString: $0) }
        XCTAssert(fault?.contains(words) == true, "\(fault ?? "nothing") is not '\(words)'", file: file, line: line)
    }

    func testSoundCommandsAreAccepted() {
        encoder.setComputePipelineState(pipeline)
        encoder.setBuffer(buffer, offset: 4, index: 0)
        encoder.setBytes([1, 2], length: 2, index: 30)
        encoder.setThreadgroupMemoryLength(32 << 10, index: 0)
        encoder.memoryBarrier(scope: .buffers)
        dispatch(grid: 100, group: 1024)
        finish()
        XCTAssertNil(standinTakeFault())
        XCTAssertEqual(commands.status, .completed)
    }

    func testAFaultFailsTheCommandBuffer() {
        encoder.setBuffer(buffer, offset: 0, index: 31)
        finish()
        XCTAssertEqual(commands.status, .error)
        XCTAssert(commands.error!.localizedDescription.contains("index 31"))
    }

    func testBufferIndex() {
        encoder.setBuffer(buffer, offset: 0, index: 31)
        assertFound("setBuffer: index 31")
        encoder.setBytes([1], length: 1, index: -1)
        assertFound("setBytes: index -1")
    }

    func testBufferOffset() {
        encoder.setBuffer(buffer, offset: 64, index: 0)
        assertFound("beyond its 64 bytes")
    }

    func testTooManyBytes() {
        encoder.setBytes([UInt8](repeating: 0, count: 4097), length: 4097, index: 0)
        assertFound("4097 bytes")
    }

    func testTooManyThreads() {
        encoder.setComputePipelineState(pipeline)
        dispatch(grid: 4096, group: 1025)
        assertFound("1025 threads")
    }

    func testEmptyGrid() {
        encoder.setComputePipelineState(pipeline)
        dispatch(grid: 0)
        assertFound("the grid is empty")
    }

    func testNoPipeline() {
        dispatch()
        assertFound("no pipeline is set")
    }

    func testTooMuchThreadgroupMemory() {
        encoder.setComputePipelineState(pipeline)
        encoder.setThreadgroupMemoryLength(16 << 10, index: 0)
        encoder.setThreadgroupMemoryLength((16 << 10) + 16, index: 1)
        dispatch()
        assertFound("32784 bytes of threadgroup memory")
    }

    func testUnevenThreadgroupMemory() {
        encoder.setThreadgroupMemoryLength(17, index: 0)
        assertFound("17 is no multiple of 16")
    }

    func testEncodingAfterItsEnd() {
        encoder.endEncoding()
        encoder.setBuffer(buffer, offset: 0, index: 0)
        assertFound("setBuffer: encoding has ended")
        encoder.endEncoding()
        assertFound("endEncoding: encoding has ended")
    }

    func testCommitWithAnOpenEncoder() {
        commands.commit()
        assertFound("commit: an encoder of this command buffer is open")
    }

    func testTwoEncodersAtOnce() {
        _ = commands.makeComputeCommandEncoder(dispatchType: .serial)
        assertFound("another encoder")
    }

    func testCommitTwice() {
        finish()
        commands.commit()
        assertFound("committed before")
    }

    func testUseAfterRelease() {
        let pointer = standinMakeBuffer(64)!
        let released = Unmanaged<AnyObject>.fromOpaque(pointer).takeUnretainedValue() as! any MTLBuffer
        standinRelease(pointer)
        encoder.setBuffer(released, offset: 0, index: 0)
        assertFound("setBuffer: buffer 0 was released")
        _ = released.contents()
        assertFound("contents: the buffer was released")
    }

    func testReleaseOfAnOpenEncoder() {
        standinRelease(standinMakeEncoder())
        assertFound("release: the encoder is open")
    }

    func testArchivesArePickyAboutTheirFiles() throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString)
        defer { try? FileManager.default.removeItem(at: file) }
        let descriptor = MTLBinaryArchiveDescriptor()
        descriptor.url = file
        XCTAssertThrowsError(try device.makeBinaryArchive(descriptor: descriptor))
        try device.makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor()).serialize(to: file)
        XCTAssertNoThrow(try device.makeBinaryArchive(descriptor: descriptor))
        try Data(contentsOf: file).dropLast().write(to: file)
        XCTAssertThrowsError(try device.makeBinaryArchive(descriptor: descriptor)) { error in
            XCTAssertEqual((error as NSError).domain, MTLBinaryArchiveDomain)
        }
    }

    func testAMissFailsWhereAsked() throws {
        let library = try device.makeLibrary(source: "kernel void k(device float* x) {}", options: nil)
        let descriptor = MTLComputePipelineDescriptor()
        descriptor.computeFunction = library.makeFunction(name: "k")
        descriptor.binaryArchives = [try device.makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor())]
        XCTAssertThrowsError(
            try device.makeComputePipelineState(
                descriptor: descriptor, options: .failOnBinaryArchiveMiss, reflection: nil))
    }
}
