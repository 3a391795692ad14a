// The functions that csrc/mfa.h declares; what they do is said there.
import CMFA
import Foundation
import Metal

@_cdecl("mfa_abi_version")
public func abiVersion() -> Int32 { MFA_ABI_VERSION }

@_cdecl("mfa_last_error")
public func lastError() -> UnsafePointer<CChar> { LastError.pointer }

@_cdecl("mfa_device_info")
public func deviceInfo(_ device: UnsafeMutableRawPointer?, _ info: UnsafeMutablePointer<MFADeviceInfo>?) -> MFAStatus {
    reporting {
        try given(info, "info").pointee = describe(try object(device, "device"))
    }
}

@_cdecl("mfa_configure")
public func configure(
    _ folder: UnsafePointer<CChar>?, _ packageVersion: UnsafePointer<CChar>?, _ mostPipelines: UInt32,
    _ mostBytes: UInt64
) -> MFAStatus {
    reporting {
        guard mostPipelines > 0 else { throw Failure.invalid("most_pipelines is 0; at least 1 is needed") }
        PipelineCache.shared.configure(
            folder: folder.map { URL(fileURLWithPath: String(cString: $0), isDirectory: true) },
            packageVersion: try text(packageVersion, "package_version"),
            mostPipelines: Int(mostPipelines), mostBytes: mostBytes)
    }
}

@_cdecl("mfa_kernel")
public func kernel(
    _ device: UnsafeMutableRawPointer?, _ source: UnsafePointer<CChar>?, _ function: UnsafePointer<CChar>?,
    _ kernel: UnsafeMutablePointer<Int64>?
) -> MFAStatus {
    reporting {
        try given(kernel, "kernel").pointee =
            PipelineCache.shared.kernel(
                device: try object(device, "device"), source: try text(source, "source"),
                function: try text(function, "function")
            ).number
    }
}

@_cdecl("mfa_release_kernel")
public func releaseKernel(_ kernel: Int64) -> MFAStatus {
    reporting { try PipelineCache.shared.release(number: kernel) }
}

@_cdecl("mfa_kernel_limits")
public func kernelLimits(
    _ kernel: Int64, _ maxThreads: UnsafeMutablePointer<UInt32>?, _ simdWidth: UnsafeMutablePointer<UInt32>?,
    _ threadgroupBytes: UnsafeMutablePointer<UInt32>?
) -> MFAStatus {
    reporting {
        let cache = PipelineCache.shared
        let pipeline = try cache.pipeline(of: cache.kernel(number: kernel))
        maxThreads?.pointee = UInt32(pipeline.maxTotalThreadsPerThreadgroup)
        simdWidth?.pointee = UInt32(pipeline.threadExecutionWidth)
        threadgroupBytes?.pointee = UInt32(pipeline.staticThreadgroupMemoryLength)
    }
}

@_cdecl("mfa_encode")
public func encode(
    _ encoder: UnsafeMutableRawPointer?, _ launches: UnsafePointer<MFALaunch>?, _ count: UInt32
) -> MFAStatus {
    reporting {
        let launches = UnsafeBufferPointer(start: try given(launches, "launches"), count: Int(count))
        try encode(launches, on: try object(encoder, "encoder"))
    }
}

@_cdecl("mfa_cache_stats")
public func cacheStats(_ stats: UnsafeMutablePointer<MFACacheStats>?) -> MFAStatus {
    reporting { try given(stats, "stats").pointee = PipelineCache.shared.stats }
}

private func given<Value>(_ value: Value?, _ name: String) throws -> Value {
    guard let value else { throw Failure.invalid("\(name) is a null pointer") }
    return value
}

private func text(_ pointer: UnsafePointer<CChar>?, _ name: String) throws -> String {
    String(cString: try given(pointer, name))
}

private func object<Object>(_ pointer: UnsafeMutableRawPointer?, _ name: String) throws -> Object {
    guard let object: Object = borrow(pointer) else { throw Failure.invalid("\(name) is no \(Object.self)") }
    return object
}
