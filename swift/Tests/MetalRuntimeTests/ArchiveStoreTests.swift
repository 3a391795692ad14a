import Foundation
import Metal
import XCTest

@testable import MetalRuntime

final class ArchiveStoreTests: XCTestCase {
    private func isFound(_ key: String, in top: URL, by systemBuild: String, _ packageVersion: String) throws -> Bool {
        let device = try testDevice()
        let store = ArchiveStore(
            top: top, mostBytes: 1 << 30, device: device, packageVersion: packageVersion, systemBuild: systemBuild)
        if case .found = store.find(key, on: device) { return true }
        return false
    }

    func testArchivesServeTheSystemAndTheVersionThatTheyWereMadeFor() throws {
        let top = temporaryFolder(self)
        let device = try testDevice()
        let key = ArchiveStore.key(source: distinctText(), function: "scale")
        let store = ArchiveStore(
            top: top, mostBytes: 1 << 30, device: device, packageVersion: "1.0", systemBuild: "23F79")
        let archive = try device.makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor())
        let descriptor = MTLComputePipelineDescriptor()
        descriptor.computeFunction = try compileFunction("scale", of: distinctText(), on: device)
        try archive.addComputePipelineFunctions(descriptor: descriptor)
        store.save(archive, as: key)
        XCTAssert(try isFound(key, in: top, by: "23F79", "1.0"))
        XCTAssertFalse(try isFound(key, in: top, by: "24A335", "1.0"))
        XCTAssertFalse(try isFound(key, in: top, by: "23F79", "1.1"))
        XCTAssertFalse(try isFound(ArchiveStore.key(source: "", function: "scale"), in: top, by: "23F79", "1.0"))
    }

    func testAKeyDependsOnTheTextAndTheFunction() {
        let key = ArchiveStore.key(source: "a", function: "f")
        XCTAssertEqual(key, ArchiveStore.key(source: "a", function: "f"))
        XCTAssertNotEqual(key, ArchiveStore.key(source: "b", function: "f"))
        XCTAssertNotEqual(key, ArchiveStore.key(source: "a", function: "g"))
    }
}
