import XCTest

@testable import MetalRuntime

final class StableHashTests: XCTestCase {
    /// FNV's published values.
    func testKnownValues() {
        XCTAssertEqual(stableHash("".utf8), "cbf29ce484222325")
        XCTAssertEqual(stableHash("a".utf8), "af63dc4c8601ec8c")
        XCTAssertEqual(stableHash("foobar".utf8), "85944171f73967e8")
    }
}
