// Values that Metal's calls take and give, with Apple's names and raw values.
import Foundation

public struct MTLSize {
    public var width: Int
    public var height: Int
    public var depth: Int

    public init(width: Int, height: Int, depth: Int) {
        self.width = width
        self.height = height
        self.depth = depth
    }
}

public enum MTLGPUFamily: Int {
    case apple1 = 1001
    case apple2 = 1002
    case apple3 = 1003
    case apple4 = 1004
    case apple5 = 1005
    case apple6 = 1006
    case apple7 = 1007
    case apple8 = 1008
    case apple9 = 1009
    case mac2 = 2002
    case common1 = 3001
    case common2 = 3002
    case common3 = 3003
    case metal3 = 5001
}

public enum MTLLanguageVersion: UInt {
    case version2_4 = 0x20004
    case version3_0 = 0x30000
    case version3_1 = 0x30001
    case version3_2 = 0x30002
}

public enum MTLMathMode: Int {
    case safe = 0
    case relaxed = 1
    case fast = 2
}

public enum MTLMathFloatingPointFunctions: Int {
    case fast = 0
    case precise = 1
}

public enum MTLDispatchType: UInt {
    case serial = 0
    case concurrent = 1
}

public enum MTLCommandBufferStatus: UInt {
    case notEnqueued = 0
    case enqueued = 1
    case committed = 2
    case scheduled = 3
    case completed = 4
    case error = 5
}

public struct MTLPipelineOption: OptionSet {
    public let rawValue: UInt

    public init(rawValue: UInt) { self.rawValue = rawValue }

    public static let bindingInfo = MTLPipelineOption(rawValue: 1)
    public static let bufferTypeInfo = MTLPipelineOption(rawValue: 2)
    public static let failOnBinaryArchiveMiss = MTLPipelineOption(rawValue: 4)
}

public struct MTLBarrierScope: OptionSet {
    public let rawValue: UInt

    public init(rawValue: UInt) { self.rawValue = rawValue }

    public static let buffers = MTLBarrierScope(rawValue: 1)
    public static let textures = MTLBarrierScope(rawValue: 2)
}

public struct MTLResourceOptions: OptionSet {
    public let rawValue: UInt

    public init(rawValue: UInt) { self.rawValue = rawValue }

    public static let storageModeShared: MTLResourceOptions = []
    public static let storageModePrivate = MTLResourceOptions(rawValue: 32)
}

public final class MTLCompileOptions {
    public var fastMathEnabled = true
    public var mathMode = MTLMathMode.fast
    public var mathFloatingPointFunctions = MTLMathFloatingPointFunctions.fast
    public var languageVersion = MTLLanguageVersion.version3_2

    public init() {}
}

public final class MTLComputePipelineDescriptor {
    public var label: String?
    public var computeFunction: (any MTLFunction)?
    public var binaryArchives: [any MTLBinaryArchive]?

    public init() {}
}

public final class MTLBinaryArchiveDescriptor {
    public var url: URL?

    public init() {}
}

public let MTLLibraryErrorDomain = "MTLLibraryErrorDomain"
public let MTLBinaryArchiveDomain = "MTLBinaryArchiveDomain"
public let MTLCommandBufferErrorDomain = "MTLCommandBufferErrorDomain"

public struct MTLLibraryError {
    public enum Code: UInt {
        case unsupported = 1
        case `internal` = 2
        case compileFailure = 3
        case compileWarning = 4
        case functionNotFound = 5
        case fileNotFound = 6
    }
}

public struct MTLBinaryArchiveError {
    public enum Code: UInt {
        case none = 0
        case invalidFile = 1
        case unexpectedElement = 2
        case compilationFailure = 3
        case internalError = 4
    }
}

public struct MTLCommandBufferError {
    public enum Code: UInt {
        case none = 0
        case `internal` = 1
        case timeout = 2
        case pageFault = 3
        case outOfMemory = 8
    }
}

func failure(_ domain: String, _ code: UInt, _ words: String) -> NSError {
    NSError(domain: domain, code: Int(code), userInfo: [NSLocalizedDescriptionKey: words])
}
