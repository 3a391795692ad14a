import Foundation

/// A binary archive: which functions of which texts were compiled.
///
/// In its file, a first line with the length of what follows makes truncation show.
final class SimulatedArchive: NSObject, MTLBinaryArchive {
    private struct Entry: Codable, Hashable {
        let function: String
        let source: String
    }

    private static let mark = "simulated-metal-archive"
    /// Leaves files half written for a while, as large ones are.
    private static let writesSlowly = ProcessInfo.processInfo.environment["STANDIN_SLOW_WRITES"] != nil

    private let lock = NSLock()
    private var entries: Set<Entry> = []

    init(url: URL?) throws {
        super.init()
        guard let url else { return }
        let content = try Data(contentsOf: url)
        let parts = content.split(separator: UInt8(ascii: "\n"), maxSplits: 1, omittingEmptySubsequences: false)
        guard parts.count == 2, String(decoding: parts[0], as: UTF8.self) == "\(Self.mark) \(parts[1].count)",
            let entries = try? JSONDecoder().decode(Set<Entry>.self, from: parts[1])
        else {
            Counts.shared.add(\.archives_rejected)
            throw failure(
                MTLBinaryArchiveDomain, MTLBinaryArchiveError.Code.invalidFile.rawValue, "\(url.path) is no archive")
        }
        self.entries = entries
    }

    func addComputePipelineFunctions(descriptor: MTLComputePipelineDescriptor) throws {
        guard let function = descriptor.computeFunction as? SimulatedFunction else {
            Validation.shared.report("addComputePipelineFunctions: computeFunction is nil")
            return
        }
        _ = try Executor.shared.build(function.library.number, function.name)
        Counts.shared.add(\.pipelines_compiled)
        _ = lock.withLock { entries.insert(Self.entry(function)) }
    }

    func serialize(to url: URL) throws {
        let body = try JSONEncoder().encode(lock.withLock { entries })
        let content = Data("\(Self.mark) \(body.count)\n".utf8) + body
        guard Self.writesSlowly else { return try content.write(to: url) }
        try content.prefix(content.count / 2).write(to: url)
        usleep(20_000)
        let file = try FileHandle(forWritingTo: url)
        defer { try? file.close() }
        try file.seekToEnd()
        try file.write(contentsOf: content.suffix(from: content.count / 2))
    }

    func holds(_ function: SimulatedFunction) -> Bool { lock.withLock { entries.contains(Self.entry(function)) } }

    private static func entry(_ function: SimulatedFunction) -> Entry {
        Entry(function: function.name, source: function.library.source)
    }
}
