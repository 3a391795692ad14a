import Metal
import XCTest

@testable import MetalRuntime

final class LibraryTests: XCTestCase {
    func testArithmeticIsAsWritten() {
        let options = compileOptions()
        XCTAssertGreaterThanOrEqual(options.languageVersion.rawValue, MTLLanguageVersion.version3_1.rawValue)
        #if compiler(>=6.0)
            if #available(macOS 15.0, *) {
                XCTAssertEqual(options.mathMode, .safe)
                XCTAssertEqual(options.mathFloatingPointFunctions, .precise)
                return
            }
        #endif
        XCTAssertFalse(options.fastMathEnabled)
    }

    func testAFunctionIsFound() throws {
        XCTAssertEqual(try compileFunction("scale", of: distinctText(), on: testDevice()).name, "scale")
    }
}
