import Foundation
import Metal

/// FNV-1a, 64 bits. The same in every process, unlike Swift's own hashes.
///
/// It names files and finds damage; nothing is trusted for its hash alone, because Metal compares the functions
/// themselves when it takes a pipeline from an archive.
func stableHash<Bytes: Sequence>(_ bytes: Bytes) -> String where Bytes.Element == UInt8 {
    var hash: UInt64 = 0xcbf2_9ce4_8422_2325
    for byte in bytes {
        hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3
    }
    let digits = String(hash, radix: 16)
    return String(repeating: "0", count: 16 - digits.count) + digits
}

/// Pipelines on disk: one binary archive for each, in a folder for each system build, GPU and package version.
///
/// An archive's file is named after what it is for and after what is in it, so that damage shows before Metal reads it.
/// Files appear whole, by renaming, and any process may delete any file at any time. Nothing here is ever fatal: what
/// cannot be read is made anew, what cannot be written is left out.
struct ArchiveStore {
    enum Finding {
        case found(MTLBinaryArchive)
        case nothing
        case damaged
    }

    /// The folder that all environments share.
    let top: URL
    let mostBytes: UInt64
    private let folder: URL

    private static let fileExtension = "metalarchive"
    private static let secondsUntilAbandoned = 3600.0

    init(
        top: URL, mostBytes: UInt64, device: MTLDevice, packageVersion: String,
        systemBuild: String = operatingSystemBuild
    ) {
        self.top = top
        self.mostBytes = mostBytes
        let environment = [packageVersion, device.name, systemBuild]
        let readable = environment.joined(separator: "-").map { $0.isLetter || $0.isNumber || $0 == "." ? $0 : "-" }
        folder = top.appendingPathComponent(
            String(readable) + "-" + stableHash(environment.joined(separator: "\0").utf8), isDirectory: true)
    }

    static func key(source: String, function: String) -> String { stableHash("\(function)\0\(source)".utf8) }

    func find(_ key: String, on device: MTLDevice) -> Finding {
        var finding = Finding.nothing
        for file in files(of: key) {
            guard let content = try? Data(contentsOf: file) else { continue }  // another process deleted it
            let descriptor = MTLBinaryArchiveDescriptor()
            descriptor.url = file
            if file.lastPathComponent == Self.name(key, content),
                let archive = try? device.makeBinaryArchive(descriptor: descriptor)
            {
                try? FileManager.default.setAttributes([.modificationDate: Date()], ofItemAtPath: file.path)
                return .found(archive)
            }
            try? FileManager.default.removeItem(at: file)
            finding = .damaged
        }
        return finding
    }

    /// Drops what was stored under a key, because it turned out not to hold the pipeline.
    func discard(_ key: String) {
        for file in files(of: key) {
            try? FileManager.default.removeItem(at: file)
        }
    }

    func save(_ archive: MTLBinaryArchive, as key: String) {
        let draft = folder.appendingPathComponent("\(UUID().uuidString).draft")
        defer { try? FileManager.default.removeItem(at: draft) }
        do {
            try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
            try archive.serialize(to: draft)
            let content = try Data(contentsOf: draft)
            guard rename(draft.path, folder.appendingPathComponent(Self.name(key, content)).path) == 0 else { return }
        } catch {
            return
        }
        trim()
    }

    /// Deletes the archives that were used longest ago until the rest is within bounds, and abandoned drafts.
    private func trim() {
        let keys: Set<URLResourceKey> = [.contentModificationDateKey, .fileSizeKey]
        var archives: [(file: URL, used: Date, bytes: UInt64)] = []
        guard let files = FileManager.default.enumerator(at: top, includingPropertiesForKeys: Array(keys)) else {
            return
        }
        for case let file as URL in files {
            guard let values = try? file.resourceValues(forKeys: keys), let used = values.contentModificationDate else {
                continue
            }
            if file.pathExtension == Self.fileExtension {
                archives.append((file, used, UInt64(values.fileSize ?? 0)))
            } else if file.pathExtension == "draft", -used.timeIntervalSinceNow > Self.secondsUntilAbandoned {
                try? FileManager.default.removeItem(at: file)
            }
        }
        var bytes = archives.reduce(0) { $0 + $1.bytes }
        for archive in archives.sorted(by: { $0.used < $1.used }) where bytes > mostBytes {
            try? FileManager.default.removeItem(at: archive.file)
            bytes -= archive.bytes
        }
    }

    private func files(of key: String) -> [URL] {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder.path)) ?? []
        return names.filter { $0.hasPrefix(key + "-") }.map { folder.appendingPathComponent($0) }
    }

    private static func name(_ key: String, _ content: Data) -> String {
        "\(key)-\(stableHash(content)).\(fileExtension)"
    }
}
