import CMFA
import Foundation
import Metal

/// A kernel that has a number. Its pipeline comes and goes; without holders it goes with its pipeline.
final class Kernel {
    let number: Int64
    let device: MTLDevice
    let source: String
    let function: String

    /// Held while the pipeline is being made, so that only one thread makes it.
    fileprivate let making = NSLock()
    fileprivate var pipeline: MTLComputePipelineState?
    /// The cache's clock when the pipeline was last asked for.
    fileprivate var lastUse: UInt64 = 0
    /// How often it was asked for and not given up since.
    fileprivate var holds = 0

    fileprivate init(number: Int64, device: MTLDevice, source: String, function: String) {
        self.number = number
        self.device = device
        self.source = source
        self.function = function
    }
}

/// Numbers for kernels, and their pipelines: the ones used last in memory, more of them on disk.
final class PipelineCache {
    static let shared = PipelineCache()

    private struct Identity: Hashable {
        let device: UInt64
        let source: String
        let function: String
    }

    private struct Disk {
        let folder: URL
        let mostBytes: UInt64
        let packageVersion: String
    }

    /// Held for look-ups and bookkeeping, never while Metal compiles.
    private let lock = NSLock()
    private var kernels: [Int64: Kernel] = [:]
    private var numbers: [Identity: Int64] = [:]
    private var lastNumber: Int64 = 0
    private var mostPipelines = 256
    private var disk: Disk?
    private var clock: UInt64 = 0
    private var counters = MFACacheStats()

    var stats: MFACacheStats {
        lock.withLock {
            var stats = counters
            stats.kernels = UInt64(kernels.count)
            return stats
        }
    }

    func configure(folder: URL?, packageVersion: String, mostPipelines: Int, mostBytes: UInt64) {
        lock.withLock {
            disk = folder.map { Disk(folder: $0, mostBytes: mostBytes, packageVersion: packageVersion) }
            self.mostPipelines = mostPipelines
            evict()
        }
    }

    /// The kernel for a function of a text, its pipeline made. The caller holds it until `release`.
    func kernel(device: MTLDevice, source: String, function: String) throws -> Kernel {
        let identity = Identity(device: device.registryID, source: source, function: function)
        let kernel = lock.withLock {
            let kernel = numbers[identity].flatMap { kernels[$0] } ?? add(identity, on: device)
            kernel.holds += 1
            return kernel
        }
        do {
            _ = try pipeline(of: kernel)
        } catch {
            try release(number: kernel.number)
            throw error
        }
        return kernel
    }

    func kernel(number: Int64) throws -> Kernel {
        guard let kernel = lock.withLock({ kernels[number] }) else {
            throw Failure.invalid("there is no kernel number \(number)")
        }
        return kernel
    }

    /// Gives up one hold on a kernel.
    func release(number: Int64) throws {
        let kernel = try kernel(number: number)
        try lock.withLock {
            guard kernel.holds > 0 else { throw Failure.invalid("nobody holds kernel number \(number)") }
            kernel.holds -= 1
            forgetIfUnused(kernel)
        }
    }

    /// Numbers a kernel. The lock is held.
    private func add(_ identity: Identity, on device: MTLDevice) -> Kernel {
        lastNumber += 1
        let kernel = Kernel(
            number: lastNumber, device: device, source: identity.source, function: identity.function)
        kernels[lastNumber] = kernel
        numbers[identity] = lastNumber
        return kernel
    }

    /// Drops a kernel, and with it its text, that nobody holds and that has no pipeline. The lock is held.
    private func forgetIfUnused(_ kernel: Kernel) {
        guard kernel.holds == 0, kernel.pipeline == nil else { return }
        kernels[kernel.number] = nil
        numbers[Identity(device: kernel.device.registryID, source: kernel.source, function: kernel.function)] = nil
    }

    func pipeline(of kernel: Kernel) throws -> MTLComputePipelineState {
        if let pipeline = recall(kernel) { return pipeline }
        return try kernel.making.withLock {
            if let pipeline = recall(kernel) { return pipeline }  // another thread made it meanwhile
            let pipeline = try make(kernel)
            lock.withLock {
                guard kernels[kernel.number] === kernel else { return }  // it was given up meanwhile
                kernel.pipeline = pipeline
                counters.pipelines += 1
                use(kernel)
                evict()
            }
            return pipeline
        }
    }

    private func recall(_ kernel: Kernel) -> MTLComputePipelineState? {
        lock.withLock {
            guard let pipeline = kernel.pipeline else { return nil }
            counters.memory_hits += 1
            use(kernel)
            return pipeline
        }
    }

    /// Notes a use. The lock is held.
    private func use(_ kernel: Kernel) {
        clock += 1
        kernel.lastUse = clock
    }

    /// Drops the pipelines used longest ago until the rest is within bounds. The lock is held.
    private func evict() {
        guard counters.pipelines > UInt64(mostPipelines) else { return }
        let inMemory = kernels.values.filter { $0.pipeline != nil }.sorted { $0.lastUse < $1.lastUse }
        for kernel in inMemory.prefix(inMemory.count - mostPipelines) {
            kernel.pipeline = nil
            counters.pipelines -= 1
            counters.evicted += 1
            forgetIfUnused(kernel)
        }
    }

    /// Makes a pipeline: from the archive on disk, else from the compiled text, which then goes into an archive.
    private func make(_ kernel: Kernel) throws -> MTLComputePipelineState {
        let store = lock.withLock { disk }.map {
            ArchiveStore(
                top: $0.folder, mostBytes: $0.mostBytes, device: kernel.device, packageVersion: $0.packageVersion)
        }
        lock.withLock { counters.libraries += 1 }
        let descriptor = MTLComputePipelineDescriptor()
        descriptor.label = kernel.function
        descriptor.computeFunction = try compileFunction(kernel.function, of: kernel.source, on: kernel.device)

        let key = ArchiveStore.key(source: kernel.source, function: kernel.function)
        if let store, let pipeline = load(descriptor, from: store, key, on: kernel.device) { return pipeline }
        // Compiled into an archive first and taken from it then: the other way round it would be compiled twice.
        let archive =
            store == nil ? nil : try? kernel.device.makeBinaryArchive(descriptor: MTLBinaryArchiveDescriptor())
        let isArchived = archive != nil && (try? archive!.addComputePipelineFunctions(descriptor: descriptor)) != nil
        descriptor.binaryArchives = isArchived ? [archive!] : nil
        do {
            let pipeline = try kernel.device.makeComputePipelineState(
                descriptor: descriptor, options: [], reflection: nil)
            lock.withLock { counters.compiled += 1 }
            if let store, let archive, isArchived { store.save(archive, as: key) }
            return pipeline
        } catch {
            throw Failure.compile("kernel '\(kernel.function)' did not become a pipeline:\n\(words(of: error))")
        }
    }

    private func load(
        _ descriptor: MTLComputePipelineDescriptor, from store: ArchiveStore, _ key: String, on device: MTLDevice
    ) -> MTLComputePipelineState? {
        switch store.find(key, on: device) {
        case .nothing:
            return nil
        case .found(let archive):
            descriptor.binaryArchives = [archive]
            if let pipeline = try? device.makeComputePipelineState(
                descriptor: descriptor, options: .failOnBinaryArchiveMiss, reflection: nil)
            {
                lock.withLock { counters.archive_hits += 1 }
                return pipeline
            }
            store.discard(key)
        case .damaged:
            break
        }
        lock.withLock { counters.archive_repairs += 1 }
        return nil
    }
}
