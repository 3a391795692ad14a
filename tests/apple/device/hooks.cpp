// What PyTorch asks about a device type: its hooks, its guard, its allocator.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/MPSHooksInterface.h>
#include <ATen/mps/MPSStream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <limits>

#include "allocator.h"

// PyTorch looks its hooks up by this very name.
struct MPSHooks final : at::MPSHooksInterface {
    void init() const override {}
    bool isBuilt() const override { return true; }
    bool isAvailable() const override { return true; }
    bool hasMPS() const override { return true; }
    bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
    bool isOnMacOSorNewer(unsigned major, unsigned) const override { return major <= 15; }
    c10::DeviceIndex deviceCount() const override { return 1; }
    c10::DeviceIndex getCurrentDevice() const override { return 0; }
    c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
    c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
    void setCurrentDevice(c10::DeviceIndex) const override {}
    c10::Device getDeviceFromPtr(void*) const override { return {c10::DeviceType::MPS, 0}; }
    c10::Allocator* getMPSDeviceAllocator() const override { return pretend::allocator(); }
    void deviceSynchronize() const override { at::mps::getDefaultMPSStream()->synchronize(at::mps::SyncType::NONE); }
    void commitStream() const override { deviceSynchronize(); }
    void emptyCache() const override {}
    std::size_t getCurrentAllocatedMemory() const override { return pretend::allocated_bytes(); }
    std::size_t getDriverAllocatedMemory() const override { return pretend::allocated_bytes(); }
    std::size_t getRecommendedMaxMemory() const override { return std::numeric_limits<int64_t>::max(); }

    // Random numbers are drawn by the CPU fallback, hence by the CPU's generator.
    const at::Generator& getDefaultGenerator(c10::DeviceIndex) const override {
        return at::detail::getDefaultCPUGenerator();
    }
    at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

namespace at {
C10_REGISTER_CLASS(MPSHooksRegistry, MPSHooks, MPSHooks)
}  // namespace at

namespace c10 {
namespace {

struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::MPS> {
    Device exchangeDevice(Device) const override { return {DeviceType::MPS, 0}; }
    Device getDevice() const override { return {DeviceType::MPS, 0}; }
    Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, getDevice()); }
    Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, getDevice()); }
};

C10_REGISTER_GUARD_IMPL(MPS, Guard)

const bool allocator_is_set = (SetAllocator(DeviceType::MPS, pretend::allocator()), true);

}  // namespace
}  // namespace c10
