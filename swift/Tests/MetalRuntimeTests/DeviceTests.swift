import CMFA
import Metal
import XCTest

@testable import MetalRuntime

final class DeviceTests: XCTestCase {
    func testLimitsAreTheDevices() throws {
        let device = try testDevice()
        let info = describe(device)
        XCTAssertEqual(Int(info.max_threads_per_threadgroup), device.maxThreadsPerThreadgroup.width)
        XCTAssertEqual(Int(info.max_threadgroup_bytes), device.maxThreadgroupMemoryLength)
        XCTAssertEqual(Int(info.max_buffer_bytes), device.maxBufferLength)
        XCTAssertEqual(info.has_unified_memory != 0, device.hasUnifiedMemory)
        let name = withUnsafeBytes(of: info.name) { String(decoding: $0.prefix { $0 != 0 }, as: UTF8.self) }
        XCTAssertEqual(name, device.name)
    }

    func testTheFamilyIsTheNewest() throws {
        let device = try testDevice()
        let family = appleFamily(of: device)
        func supports(_ number: Int) -> Bool {
            MTLGPUFamily(rawValue: 1000 + number).map(device.supportsFamily) ?? false
        }
        XCTAssert(family == 0 || supports(family))
        XCTAssertFalse(supports(family + 1))
    }
}
