import Foundation

/// What Metal's API validation would have stopped the program for, oldest first.
final class Validation {
    static let shared = Validation()

    private static let mostKept = 256

    private let lock = NSLock()
    private var faults: [String] = []

    func report(_ fault: String) {
        lock.withLock {
            if faults.count < Self.mostKept { faults.append(fault) }
        }
    }

    func take() -> String? { lock.withLock { faults.isEmpty ? nil : faults.removeFirst() } }

    func forget(_ reported: [String]) {
        lock.withLock { faults.removeAll { reported.contains($0) } }
    }
}
