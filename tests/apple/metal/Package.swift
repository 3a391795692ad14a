// swift-tools-version:5.9
import PackageDescription

// A module with the name and the face of Apple's Metal, whose kernels run on this project's simulator.
let package = Package(
    name: "Metal",
    products: [.library(name: "Metal", type: .dynamic, targets: ["Metal"])],
    targets: [
        .systemLibrary(name: "CStandin"),
        .target(name: "Metal", dependencies: ["CStandin"]),
        .testTarget(name: "MetalTests", dependencies: ["Metal"]),
    ]
)
