import CMFA
import Foundation
import Metal
import XCTest

@testable import MetalRuntime

final class PipelineCacheTests: XCTestCase {
    private func kernel(_ cache: PipelineCache, _ text: String) throws -> Kernel {
        try cache.kernel(device: testDevice(), source: text, function: "scale")
    }

    private func cache(in folder: URL) -> PipelineCache {
        let cache = PipelineCache()
        cache.configure(folder: folder, packageVersion: "1.0", mostPipelines: 8, mostBytes: 1 << 30)
        return cache
    }

    func testAKernelKeepsItsNumber() throws {
        let cache = PipelineCache()
        let text = distinctText()
        let first = try kernel(cache, text)
        XCTAssert(try kernel(cache, text) === first)
        XCTAssertNotEqual(try kernel(cache, distinctText()).number, first.number)
        XCTAssertEqual(cache.stats.memory_hits, 1)
        XCTAssertEqual(cache.stats.compiled, 2)
    }

    func testThePipelineUsedLongestAgoGoes() throws {
        let cache = PipelineCache()
        cache.configure(folder: nil, packageVersion: "1.0", mostPipelines: 2, mostBytes: 0)
        let texts = [distinctText(), distinctText(), distinctText()]
        let kernels = try texts.prefix(2).map { try kernel(cache, $0) }
        _ = try cache.pipeline(of: kernels[0])
        _ = try kernel(cache, texts[2])
        XCTAssertEqual(cache.stats.evicted, 1)
        _ = try cache.pipeline(of: kernels[0])
        XCTAssertEqual(cache.stats.compiled, 3, "the kernel used last was dropped")
        _ = try cache.pipeline(of: kernels[1])
        XCTAssertEqual(cache.stats.compiled, 4)
        XCTAssertEqual(cache.stats.pipelines, 2)
    }

    func testFewerPipelinesAreKeptAtOnce() throws {
        let cache = PipelineCache()
        for _ in 0..<3 { _ = try kernel(cache, distinctText()) }
        cache.configure(folder: nil, packageVersion: "1.0", mostPipelines: 1, mostBytes: 0)
        XCTAssertEqual(cache.stats.pipelines, 1)
        XCTAssertEqual(cache.stats.evicted, 2)
    }

    func testAKernelThatNobodyHoldsGoesWithItsPipeline() throws {
        let cache = PipelineCache()
        cache.configure(folder: nil, packageVersion: "1.0", mostPipelines: 2, mostBytes: 0)
        let held = try kernel(cache, distinctText())
        for _ in 0..<5 { try cache.release(number: kernel(cache, distinctText()).number) }
        XCTAssertEqual(cache.stats.kernels, 3, "the one that is held, and two that still have pipelines")
        _ = try cache.pipeline(of: held)
        XCTAssertEqual(cache.stats.compiled, 7)
        try cache.release(number: held.number)
        XCTAssertEqual(cache.stats.kernels, 2)
        assertFails("nobody holds kernel number \(held.number)") { try cache.release(number: held.number) }
    }

    func testAKernelThatFailedIsNotKept() throws {
        let cache = PipelineCache()
        XCTAssertThrowsError(try cache.kernel(device: testDevice(), source: distinctText(), function: "scales"))
        XCTAssertEqual(cache.stats.kernels, 0)
    }

    func testAnotherCacheFindsTheArchive() throws {
        let folder = temporaryFolder(self)
        let text = distinctText()
        _ = try kernel(cache(in: folder), text)
        let other = cache(in: folder)
        _ = try kernel(other, text)
        XCTAssertEqual(other.stats.archive_hits, 1)
        XCTAssertEqual(other.stats.compiled, 0)
        XCTAssertEqual(other.stats.libraries, 1)
    }

    func testADamagedArchiveIsMadeAnew() throws {
        let folder = temporaryFolder(self)
        let text = distinctText()
        _ = try kernel(cache(in: folder), text)
        let files = try FileManager.default.subpathsOfDirectory(atPath: folder.path)
        let archive = folder.appendingPathComponent(try XCTUnwrap(files.first { $0.hasSuffix("metalarchive") }))
        let content = try Data(contentsOf: archive)
        try content.prefix(content.count / 2).write(to: archive)
        let repairing = cache(in: folder)
        _ = try kernel(repairing, text)
        XCTAssertEqual(repairing.stats.archive_repairs, 1)
        XCTAssertEqual(repairing.stats.compiled, 1)
        let after = cache(in: folder)
        _ = try kernel(after, text)
        XCTAssertEqual(after.stats.archive_hits, 1)
    }

    func testErrorsNameTheKernel() throws {
        let cache = PipelineCache()
        assertFails("has no kernel 'scales'; it has 'scale'") {
            _ = try cache.kernel(device: testDevice(), source: distinctText(), function: "scales")
        }
        assertFails("no kernel number 7") { _ = try cache.kernel(number: 7) }
    }
}
