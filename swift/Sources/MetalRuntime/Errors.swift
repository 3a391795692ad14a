import CMFA
import Foundation
import Metal

/// What a call of the C ABI reports: a status and the words that go with it.
struct Failure: Error {
    let status: MFAStatus
    let message: String

    static func invalid(_ message: String) -> Failure { Failure(status: MFAStatus(MFA_INVALID), message: message) }
    static func compile(_ message: String) -> Failure { Failure(status: MFAStatus(MFA_COMPILE), message: message) }
    static func launch(_ message: String) -> Failure { Failure(status: MFAStatus(MFA_LAUNCH), message: message) }
}

/// Metal's own words for an error, with those of the error beneath it.
func words(of error: Error) -> String {
    let error = error as NSError
    var text = error.localizedDescription
    if let cause = error.userInfo[NSUnderlyingErrorKey] as? NSError {
        text += "\n" + words(of: cause)
    }
    return "\(text) (\(error.domain) \(error.code))"
}

/// Runs the body of a C function: frees what Metal autoreleases, turns what is thrown into a status and its words.
func reporting(_ body: () throws -> Void) -> MFAStatus {
    autoreleasepool {
        do {
            try body()
            return MFAStatus(MFA_OK)
        } catch let failure as Failure {
            LastError.set(failure.message)
            return failure.status
        } catch {
            LastError.set(words(of: error))
            return MFAStatus(MFA_INVALID)
        }
    }
}

/// The words of a thread's last failure, as a C string that lives until its next one.
final class LastError {
    private static let key = "mps-flash-attn.last-error"
    private static let none = strdup("")!

    private let text: UnsafeMutablePointer<CChar>

    private init(_ message: String) { text = strdup(message) ?? strdup("out of memory") }

    deinit { free(text) }

    static func set(_ message: String) { Thread.current.threadDictionary[key] = LastError(message) }

    static var pointer: UnsafePointer<CChar> {
        UnsafePointer((Thread.current.threadDictionary[key] as? LastError)?.text ?? none)
    }
}
