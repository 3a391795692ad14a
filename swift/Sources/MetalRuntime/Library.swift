import Metal

/// How texts are compiled: arithmetic as written, in the language that the kernels are written in.
///
/// That is 3.1 on every system, the first with bfloat and the newest that macOS 14 knows: a text means the same
/// everywhere, and no kernel needs what came later.
func compileOptions() -> MTLCompileOptions {
    let options = MTLCompileOptions()
    options.languageVersion = .version3_1
    options.fastMathEnabled = false
    #if compiler(>=6.0)  // the SDK that comes with it declares what macOS 15 puts in its place
        if #available(macOS 15.0, *) {
            options.mathMode = .safe
            options.mathFloatingPointFunctions = .precise
        }
    #endif
    return options
}

/// One function of a Metal text, in Metal's intermediate form.
///
/// Every process does this once for each pipeline that it makes, also for one whose machine code is on disk: an archive
/// finds a pipeline by the function that it was made from, a function comes from a library, and Metal has no call that
/// writes a library made from text. What it can write is no substitute: a dynamic library holds no kernels, and files
/// that hold some come from the offline compiler, which is part of Xcode and not of the Command Line Tools.
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
