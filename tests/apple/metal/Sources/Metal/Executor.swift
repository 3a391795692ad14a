import CStandin
import Foundation

/// A parameter of a kernel that takes a buffer.
struct Parameter: Decodable {
    let index: Int
    /// What offsets must be multiples of.
    let bytes: Int
}

/// A kernel of a text, as the executor describes it.
struct KernelDescription: Decodable {
    let name: String
    let buffers: [Parameter]
}

/// What compiles texts and runs kernels: the functions that tests install, or none.
final class Executor {
    static let shared = Executor()

    private static let replyBytes = 1 << 20

    private let lock = NSLock()
    private var table: StandinExecutor?
    private(set) var executes = true
    /// Why the next kernel is not to be built, where a test planted that.
    private var refusal: String?

    func install(_ table: StandinExecutor?) { lock.withLock { self.table = table } }
    func refuseNextBuild(_ words: String) { lock.withLock { refusal = words } }
    func setExecution(_ on: Bool) { lock.withLock { executes = on } }

    func translate(_ source: String) throws -> (library: Int64, kernels: [KernelDescription]) {
        guard let table = lock.withLock({ table }) else { return (0, try Self.scan(source)) }
        let (library, reply) = Self.call { table.translate(source, $0, $1) }
        guard library > 0 else {
            throw failure(MTLLibraryErrorDomain, MTLLibraryError.Code.compileFailure.rawValue, reply)
        }
        return (library, try JSONDecoder().decode([KernelDescription].self, from: Data(reply.utf8)))
    }

    /// Returns 0 where nothing can run.
    func build(_ library: Int64, _ function: String) throws -> Int64 {
        let planted = lock.withLock {
            defer { refusal = nil }
            return refusal
        }
        if let planted {
            throw failure(MTLLibraryErrorDomain, MTLLibraryError.Code.internal.rawValue, planted)
        }
        guard let table = lock.withLock({ table }), library > 0 else { return 0 }
        let (kernel, reply) = Self.call { table.build(library, function, $0, $1) }
        guard kernel > 0 else {
            throw failure(MTLLibraryErrorDomain, MTLLibraryError.Code.internal.rawValue, reply)
        }
        return kernel
    }

    /// Returns what went wrong, if anything did.
    func launch(
        _ kernel: Int64, _ addresses: [UnsafeMutableRawPointer?], _ lengths: [UInt64], _ threads: [UInt32],
        _ group: [UInt32]
    ) -> String? {
        guard let table = lock.withLock({ table }), kernel > 0 else { return nil }
        let (status, reply) = Self.call {
            table.launch(kernel, addresses, lengths, UInt32(addresses.count), threads, group, $0, $1)
        }
        return status == 0 ? nil : reply
    }

    private static func call<Status>(_ body: (UnsafeMutablePointer<CChar>, UInt64) -> Status) -> (Status, String) {
        withUnsafeTemporaryAllocation(of: CChar.self, capacity: replyBytes) { reply in
            reply[0] = 0
            let status = body(reply.baseAddress!, UInt64(reply.count))
            return (status, String(cString: reply.baseAddress!))
        }
    }

    private static func scan(_ source: String) throws -> [KernelDescription] {
        let pattern = try NSRegularExpression(pattern: #"kernel\s+void\s+(\w+)\s*\("#)
        let matches = pattern.matches(in: source, range: NSRange(source.startIndex..., in: source))
        return matches.map { KernelDescription(name: String(source[Range($0.range(at: 1), in: source)!]), buffers: []) }
    }
}
