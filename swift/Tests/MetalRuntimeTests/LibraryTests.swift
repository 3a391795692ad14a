import Metal
import XCTest

@testable import MetalRuntime

final class LibraryTests: XCTestCase {
    func testArithmeticIsAsWritten() {
        let options = compileOptions()
        XCTAssertEqual(options.languageVersion, .version3_1)
        XCTAssertFalse(options.fastMathEnabled)
        #if compiler(>=6.0)
            if #available(macOS 15.0, *) {
                XCTAssertEqual(options.mathMode, .safe)
                XCTAssertEqual(options.mathFloatingPointFunctions, .precise)
            }
        #endif
    }

    func testAFunctionIsFound() throws {
        XCTAssertEqual(try compileFunction("scale", of: distinctText(), on: testDevice()).name, "scale")
    }
}
