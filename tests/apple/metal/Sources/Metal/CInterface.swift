// What C and Python reach: objects as opaque pointers (device/metal_objects.h) and the tests' controls (standin.h).
import CStandin
import Foundation

/// An object that C owns. After its release it stays behind as an empty shell for a while, so that its use is reported.
protocol Releasable: AnyObject {
    func release()
}

private enum Shells {
    private static let mostKept = 4096
    private static let lock = NSLock()
    private static var kept: [AnyObject] = []
    private static var next = 0

    static func keep(_ object: AnyObject) {
        lock.withLock {
            if kept.count < mostKept {
                kept.append(object)
            } else {
                kept[next] = object
                next = (next + 1) % mostKept
            }
        }
    }
}

/// A text of the thread that asked for it, as a C string that lives until it asks for the next.
private final class Words {
    private static let key = "standin.words"

    private let text: UnsafeMutablePointer<CChar>

    private init(_ text: String) { self.text = strdup(text) }

    deinit { free(text) }

    static func hand(_ text: String?) -> UnsafePointer<CChar>? {
        guard let text else { return nil }
        let words = Words(text)
        Thread.current.threadDictionary[key] = words
        return UnsafePointer(words.text)
    }
}

private func object<Object>(_ pointer: UnsafeMutableRawPointer, as type: Object.Type = Object.self) -> Object {
    Unmanaged<AnyObject>.fromOpaque(pointer).takeUnretainedValue() as! Object
}

@_cdecl("standin_device")
public func standinDevice() -> UnsafeMutableRawPointer { Unmanaged.passUnretained(SimulatedDevice.shared).toOpaque() }

@_cdecl("standin_make_buffer")
public func standinMakeBuffer(_ bytes: UInt64) -> UnsafeMutableRawPointer? {
    guard let length = Int(exactly: bytes) else { return nil }
    let buffer = SimulatedDevice.shared.makeBuffer(length: length, options: .storageModeShared) as? SimulatedBuffer
    return buffer.map { Unmanaged.passRetained($0).toOpaque() }
}

@_cdecl("standin_buffer_contents")
public func standinBufferContents(_ buffer: UnsafeMutableRawPointer) -> UnsafeMutableRawPointer {
    object(buffer, as: SimulatedBuffer.self).contents()
}

@_cdecl("standin_make_encoder")
public func standinMakeEncoder() -> UnsafeMutableRawPointer {
    Unmanaged.passRetained(
        SimulatedCommandBuffer().makeComputeCommandEncoder(dispatchType: .serial) as! SimulatedComputeEncoder
    ).toOpaque()
}

@_cdecl("standin_end_encoding")
public func standinEndEncoding(_ encoder: UnsafeMutableRawPointer) -> UnsafePointer<CChar>? {
    let encoder = object(encoder, as: SimulatedComputeEncoder.self)
    encoder.endEncoding()
    encoder.commandBuffer.commit()
    encoder.commandBuffer.waitUntilCompleted()
    let faults = encoder.commandBuffer.faults
    Validation.shared.forget(faults)
    let error = (encoder.commandBuffer.error as NSError?)?.localizedDescription
    return Words.hand(faults.isEmpty ? error : faults.joined(separator: "\n"))
}

@_cdecl("standin_release")
public func standinRelease(_ pointer: UnsafeMutableRawPointer) {
    let released: any Releasable = object(pointer)
    released.release()
    Shells.keep(released)
    Unmanaged<AnyObject>.fromOpaque(pointer).release()
}

@_cdecl("standin_set_executor")
public func standinSetExecutor(_ executor: UnsafePointer<StandinExecutor>?) {
    Executor.shared.install(executor?.pointee)
}

@_cdecl("standin_set_execution")
public func standinSetExecution(_ on: Int32) { Executor.shared.setExecution(on != 0) }

@_cdecl("standin_make_idle_encoder")
public func standinMakeIdleEncoder() -> UnsafeMutableRawPointer {
    Unmanaged.passRetained(IdleComputeEncoder()).toOpaque()
}

@_cdecl("standin_refuse_next_pipeline")
public func standinRefuseNextPipeline(_ words: UnsafePointer<CChar>) {
    Executor.shared.refuseNextBuild(String(cString: words))
}

@_cdecl("standin_counts")
public func standinCounts(_ counts: UnsafeMutablePointer<StandinCounts>) { counts.pointee = Counts.shared.snapshot }

@_cdecl("standin_take_fault")
public func standinTakeFault() -> UnsafePointer<CChar>? { Words.hand(Validation.shared.take()) }
