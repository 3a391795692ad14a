import Foundation
import Metal
import XCTest

@testable import MetalRuntime

/// The GPU that the tests use.
func testDevice() throws -> MTLDevice { try XCTUnwrap(MTLCreateSystemDefaultDevice(), "this machine has no GPU") }

/// A text with a kernel `scale` that no process has compiled before.
func distinctText() -> String {
    """
    // \(UUID().uuidString)
    #include <metal_stdlib>
    using namespace metal;
    kernel void scale(device float* x [[buffer(0)]], constant float& factor [[buffer(1)]],
                      uint i [[thread_position_in_grid]]) {
        x[i] *= factor;
    }
    """
}

/// A folder that is gone after the test.
func temporaryFolder(_ test: XCTestCase) -> URL {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent(UUID().uuidString, isDirectory: true)
    test.addTeardownBlock { try? FileManager.default.removeItem(at: folder) }
    return folder
}

func assertFails(_ words: String, file: StaticString = #filePath, line: UInt = #line, _ body: () throws -> Void) {
    XCTAssertThrowsError(try body(), file: file, line: line) { error in
        let message = (error as? Failure)?.message ?? "\(error)"
        XCTAssert(message.contains(words), "'\(message)' does not say '\(words)'", file: file, line: line)
    }
}
