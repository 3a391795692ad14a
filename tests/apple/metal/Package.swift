// swift-tools-version:5.9
import PackageDescription

// Modules with the names and faces of Apple's Metal, whose kernels run on this project's simulator, and IOKit.
let package = Package(
    name: "Metal",
    products: [.library(name: "Metal", type: .dynamic, targets: ["Metal", "IOKit"])],
    targets: [
        .systemLibrary(name: "CStandin"),
        .target(name: "Metal", dependencies: ["CStandin"]),
        .target(name: "IOKit"),
        .testTarget(name: "MetalTests", dependencies: ["Metal"]),
    ]
)
