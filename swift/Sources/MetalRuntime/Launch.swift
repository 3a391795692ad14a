import CMFA
import Metal

/// Buffers that a kernel may have.
private let mostBuffers: UInt32 = 31
/// What `setBytes` takes.
private let mostBytes: UInt64 = 4096

/// A launch that was found to be within all limits.
private struct CheckedLaunch {
    let launch: MFALaunch
    let pipeline: MTLComputePipelineState
    let buffers: [MTLBuffer]
}

/// Encodes launches in order, all of them or, if one is beyond a limit, none.
func encode(_ launches: UnsafeBufferPointer<MFALaunch>, on encoder: MTLComputeCommandEncoder) throws {
    for checked in try launches.map(check) {
        let launch = checked.launch
        if launch.threads.0 == 0 || launch.threads.1 == 0 || launch.threads.2 == 0 { continue }
        if launch.waits != 0 { encoder.memoryBarrier(scope: .buffers) }
        encoder.setComputePipelineState(checked.pipeline)
        for (i, buffer) in checked.buffers.enumerated() {
            let place = launch.buffers[i]
            encoder.setBuffer(buffer, offset: Int(place.offset), index: Int(place.index))
        }
        for i in 0..<Int(launch.bytes_count) {
            let bytes = launch.bytes[i]
            encoder.setBytes(bytes.data, length: Int(bytes.length), index: Int(bytes.index))
        }
        encoder.dispatchThreads(size(launch.threads), threadsPerThreadgroup: size(launch.group_size))
    }
}

private func check(_ launch: MFALaunch) throws -> CheckedLaunch {
    let kernel = try PipelineCache.shared.kernel(number: launch.kernel)
    let pipeline = try PipelineCache.shared.pipeline(of: kernel)
    func refuse(_ reason: String) -> Failure { .launch("kernel '\(kernel.function)': \(reason)") }

    guard launch.buffer_count == 0 || launch.buffers != nil, launch.bytes_count == 0 || launch.bytes != nil else {
        throw refuse("buffers or bytes are a null pointer")
    }
    var taken: UInt32 = 0
    func take(_ index: UInt32) throws {
        guard index < mostBuffers else { throw refuse("buffer index \(index); there are 0 to \(mostBuffers - 1)") }
        guard taken & (1 << index) == 0 else { throw refuse("buffer index \(index) is given twice") }
        taken |= 1 << index
    }

    let buffers = try (0..<Int(launch.buffer_count)).map { i in
        let place = launch.buffers[i]
        try take(place.index)
        guard let buffer: MTLBuffer = borrow(place.buffer) else {
            throw refuse("buffer \(place.index) is no buffer of Metal")
        }
        guard place.offset < UInt64(buffer.length) else {
            throw refuse("offset \(place.offset) of buffer \(place.index) is beyond its \(buffer.length) bytes")
        }
        return buffer
    }
    for i in 0..<Int(launch.bytes_count) {
        let bytes = launch.bytes[i]
        try take(bytes.index)
        guard bytes.data != nil, 1...mostBytes ~= bytes.length else {
            throw refuse("\(bytes.length) bytes for buffer \(bytes.index); 1 to \(mostBytes) can be passed by value")
        }
    }

    let group = size(launch.group_size)
    let most = kernel.device.maxThreadsPerThreadgroup
    guard group.width <= most.width, group.height <= most.height, group.depth <= most.depth,
        1...pipeline.maxTotalThreadsPerThreadgroup ~= group.width * group.height * group.depth
    else {
        throw refuse(
            "a threadgroup of \(group.width) x \(group.height) x \(group.depth) threads; this kernel may have 1 to "
                + "\(pipeline.maxTotalThreadsPerThreadgroup), the GPU \(most.width) x \(most.height) x \(most.depth)")
    }
    return CheckedLaunch(launch: launch, pipeline: pipeline, buffers: buffers)
}

/// An object of Metal behind an opaque pointer, or nil if it is null or something else.
func borrow<Object>(_ pointer: UnsafeMutableRawPointer?) -> Object? {
    pointer.flatMap { Unmanaged<AnyObject>.fromOpaque($0).takeUnretainedValue() as? Object }
}

private func size(_ size: (UInt32, UInt32, UInt32)) -> MTLSize {
    MTLSize(width: Int(size.0), height: Int(size.1), depth: Int(size.2))
}
