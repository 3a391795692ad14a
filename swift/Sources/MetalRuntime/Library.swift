import Metal

/// How texts are compiled: arithmetic as written, with the newest language that both this build and the system know.
func compileOptions() -> MTLCompileOptions {
    let options = MTLCompileOptions()
    options.languageVersion = .version3_1
    #if compiler(>=6.0)  // the SDK that comes with it declares what macOS 15 brought
        if #available(macOS 15.0, *) {
            options.languageVersion = .version3_2
            options.mathMode = .safe
            options.mathFloatingPointFunctions = .precise
            return options
        }
    #endif
    options.fastMathEnabled = false
    return options
}

/// One function of a Metal text, in Metal's intermediate form.
///
/// Every process does this once for each pipeline that it makes, also for one whose machine code is on disk: Metal offers
/// no way to keep a library that was made from text.
///
/// - Throws: `Failure` with the compile log, or with the names of the functions that there are.
func compileFunction(_ name: String, of source: String, on device: MTLDevice) throws -> MTLFunction {
    let library: MTLLibrary
    do {
        library = try device.makeLibrary(source: source, options: compileOptions())
    } catch {
        throw Failure.compile("the text of kernel '\(name)' did not compile:\n\(words(of: error))")
    }
    guard let function = library.makeFunction(name: name) else {
        let names = library.functionNames.map { "'\($0)'" }.joined(separator: ", ")
        throw Failure.compile("the text has no kernel '\(name)'; it has \(names.isEmpty ? "none" : names)")
    }
    return function
}
