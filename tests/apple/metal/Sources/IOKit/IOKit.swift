// A module with the name and the face of Apple's IOKit, in the little that the runtime reads of the registry of drivers.
import Foundation

public typealias CFString = NSString
public typealias CFDictionary = NSDictionary
public typealias CFMutableDictionary = NSMutableDictionary
public typealias CFAllocator = NSObject
public typealias CFTypeRef = AnyObject
public typealias io_object_t = UInt32
public typealias io_service_t = io_object_t
public typealias io_registry_entry_t = io_object_t
public typealias IOOptionBits = UInt32
public typealias kern_return_t = Int32
public typealias mach_port_t = UInt32

public let kIOMainPortDefault: mach_port_t = 0
public let kCFAllocatorDefault: CFAllocator! = nil

/// The registry's only driver: one GPU with so many cores. A test may take it away by naming none.
private let driver: io_object_t = 1
private let cores = ProcessInfo.processInfo.environment["STANDIN_GPU_CORES"] ?? "8"
private let nameKey = NSString(string: "IOProviderClass")

public func IOServiceMatching(_ name: UnsafePointer<CChar>!) -> CFMutableDictionary! {
    NSMutableDictionary(object: NSString(string: String(cString: name)), forKey: nameKey)
}

public func IOServiceGetMatchingService(_ mainPort: mach_port_t, _ matching: CFDictionary!) -> io_service_t {
    let name = matching.object(forKey: nameKey) as? NSString
    return name == NSString(string: "AGXAccelerator") && !cores.isEmpty ? driver : 0
}

public func IORegistryEntryCreateCFProperty(
    _ entry: io_registry_entry_t, _ key: CFString!, _ allocator: CFAllocator!, _ options: IOOptionBits
) -> Unmanaged<CFTypeRef>! {
    guard entry == driver, key == NSString(string: "gpu-core-count"), let cores = Int(cores) else { return nil }
    return Unmanaged.passRetained(NSNumber(value: cores))
}

@discardableResult
public func IOObjectRelease(_ object: io_object_t) -> kern_return_t {
    precondition(object == driver, "IOObjectRelease: \(object) is no object")
    return 0
}
