import Foundation

/// Pages of memory, filled with NaN as floats of any size: nobody may count on zeros.
final class Memory {
    let address: UnsafeMutableRawPointer
    let bytes: Int

    init?(bytes: Int) {
        let address = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        guard let address, address != MAP_FAILED else { return nil }
        memset(address, 0xff, bytes)
        self.address = address
        self.bytes = bytes
        Counts.shared.add(\.buffers)
        Counts.shared.add(\.buffer_bytes, bytes)
    }

    deinit {
        munmap(address, bytes)
        Counts.shared.add(\.buffers, -1)
        Counts.shared.add(\.buffer_bytes, -bytes)
    }
}

final class SimulatedBuffer: NSObject, MTLBuffer, Releasable {
    let length: Int
    /// Nil once the buffer was released.
    private(set) var memory: Memory?

    init(_ memory: Memory) {
        self.memory = memory
        length = memory.bytes
    }

    func contents() -> UnsafeMutableRawPointer {
        if memory == nil { Validation.shared.report("contents: the buffer was released") }
        return memory?.address ?? UnsafeMutableRawPointer(bitPattern: Int(getpagesize()))!
    }

    func release() { memory = nil }
}
