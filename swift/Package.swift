// swift-tools-version:5.9
import PackageDescription

// Every call to Metal, behind the C ABI of csrc/mfa.h.
let package = Package(
    name: "MetalRuntime",
    platforms: [.macOS(.v14)],
    products: [.library(name: "MetalRuntime", type: .dynamic, targets: ["MetalRuntime"])],
    targets: [
        .systemLibrary(name: "CMFA"),
        .target(name: "MetalRuntime", dependencies: ["CMFA"]),
        .testTarget(name: "MetalRuntimeTests", dependencies: ["MetalRuntime"]),
    ]
)
