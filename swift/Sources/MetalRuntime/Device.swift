import CMFA
import Foundation
import IOKit
import Metal

/// The operating system's version and build, which decide what Metal's compiler makes of a text.
let operatingSystemBuild = ProcessInfo.processInfo.operatingSystemVersionString

/// The number n of the newest family "Apple n" that the GPU belongs to; 0 if it belongs to none that is known.
func appleFamily(of device: MTLDevice) -> Int {
    let base = MTLGPUFamily.apple1.rawValue
    return (1...16).last { number in
        MTLGPUFamily(rawValue: base + number - 1).map(device.supportsFamily) ?? false
    } ?? 0
}

/// Whether kernels may use bfloat: on every Apple GPU from the A13's and M1's on, with macOS 14 or newer.
func supportsBfloat(_ device: MTLDevice) -> Bool { device.supportsFamily(.apple6) }

/// The GPU's cores, which only the registry of drivers knows; 0 if it does not.
func gpuCores() -> Int32 {
    let service = IOServiceGetMatchingService(kIOMainPortDefault, IOServiceMatching("AGXAccelerator"))
    guard service != 0 else { return 0 }
    defer { IOObjectRelease(service) }
    let key = "gpu-core-count" as CFString
    let count = IORegistryEntryCreateCFProperty(service, key, kCFAllocatorDefault, 0)?.takeRetainedValue()
    return (count as? NSNumber)?.int32Value ?? 0
}

func describe(_ device: MTLDevice) -> MFADeviceInfo {
    var info = MFADeviceInfo()
    copy(device.name, to: &info.name)
    copy(operatingSystemBuild, to: &info.os_build)
    info.gpu_family = Int32(appleFamily(of: device))
    info.gpu_cores = gpuCores()
    info.has_unified_memory = device.hasUnifiedMemory ? 1 : 0
    info.supports_bfloat = supportsBfloat(device) ? 1 : 0
    info.max_threads_per_threadgroup = UInt32(device.maxThreadsPerThreadgroup.width)
    info.max_threadgroup_bytes = UInt32(device.maxThreadgroupMemoryLength)
    info.max_buffer_bytes = UInt64(device.maxBufferLength)
    info.recommended_working_set_bytes = device.recommendedMaxWorkingSetSize
    return info
}

/// Fills an array of C characters with a text, cut where it is too long, and a final zero.
private func copy<Characters>(_ text: String, to characters: inout Characters) {
    withUnsafeMutableBytes(of: &characters) { bytes in
        bytes.initializeMemory(as: UInt8.self, repeating: 0)
        bytes.copyBytes(from: text.utf8.prefix(bytes.count - 1))
    }
}
