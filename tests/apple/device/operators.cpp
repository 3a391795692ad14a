// The operators of the pretend device: memory and views by itself, everything else on the CPU.
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/mps/MPSStream.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <torch/library.h>

#include <optional>

#include "allocator.h"
#include "faults.h"
#include "objects.h"

namespace {

using at::Tensor;

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::MPS);

void refuse_float64(at::ScalarType dtype) {
    TORCH_CHECK_TYPE(dtype != at::kDouble && dtype != at::kComplexDouble, "Cannot make an MPS tensor of dtype ", dtype,
                     ": Metal has no float64. Use float32.");
}

Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
    refuse_float64(at::dtype_or_default(dtype));
    return at::detail::empty_generic(size, pretend::allocator(), kKeys, at::dtype_or_default(dtype), format);
}

Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
    refuse_float64(at::dtype_or_default(dtype));
    return at::detail::empty_strided_generic(size, stride, pretend::allocator(), kKeys, at::dtype_or_default(dtype));
}

// The same memory as a CPU tensor, when all that was launched on it is done. A CPU tensor is returned as it is.
Tensor host_alias(const Tensor& tensor) {
    if (!tensor.is_mps()) return tensor;
    at::mps::getCurrentMPSStream()->synchronize(at::mps::SyncType::COMMIT_AND_WAIT);
    const auto options = at::TensorOptions().dtype(tensor.dtype()).device(at::kCPU);
    void* const buffer = tensor.storage().mutable_data();
    if (buffer == nullptr) {
        TORCH_CHECK(tensor.numel() == 0, "an MPS tensor of ", tensor.numel(), " elements has lost its storage");
        return at::empty_strided(tensor.sizes(), tensor.strides(), options);
    }
    auto* const contents = static_cast<char*>(pretend::metal().buffer_contents(buffer));
    const c10::Storage storage = tensor.storage();  // kept alive by the alias
    return at::from_blob(
        contents + tensor.storage_offset() * static_cast<int64_t>(tensor.element_size()), tensor.sizes(),
        tensor.strides(), [storage](void*) {}, options);
}

Tensor& copy_(Tensor& self, const Tensor& source, bool) {
    host_alias(self).copy_(host_alias(source));
    return self;
}

Tensor copy_from(const Tensor& source, const Tensor& destination, bool) {
    host_alias(destination).copy_(host_alias(source));
    return destination;
}

const Tensor& resize_(const Tensor& self, at::IntArrayRef size, std::optional<at::MemoryFormat> format) {
    if (self.sizes() == size) return self;
    const std::size_t bytes = at::detail::computeStorageNbytesContiguous(
        size, self.element_size(), static_cast<std::size_t>(self.storage_offset()));
    const c10::Storage& storage = self.storage();
    if (storage.nbytes() < bytes) {
        auto grown = pretend::allocator()->allocate(bytes);
        if (storage.nbytes() > 0) pretend::allocator()->copy_data(grown.get(), storage.data(), storage.nbytes());
        storage.set_data_ptr_noswap(std::move(grown));
        storage.set_nbytes(bytes);
    }
    self.unsafeGetTensorImpl()->set_sizes_contiguous(size);
    if (format) self.unsafeGetTensorImpl()->empty_tensor_restride(*format);
    return self;
}

Tensor copy_from_and_resize(const Tensor& source, const Tensor& destination) {
    resize_(destination, source.sizes(), std::nullopt);
    return copy_from(source, destination, false);
}

at::Scalar local_scalar_dense(const Tensor& self) { return at::_local_scalar_dense(host_alias(self)); }

Tensor& set_storage(Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
    self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(source));
    self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
    return self;
}

void fall_back(const c10::OperatorHandle& op, torch::jit::Stack* stack) { at::native::cpu_fallback(op, stack); }

}  // namespace

TORCH_LIBRARY_IMPL(_, MPS, library) { library.fallback(torch::CppFunction::makeFromBoxedFunction<&fall_back>()); }

TORCH_LIBRARY_IMPL(aten, MPS, library) {
    library.impl("empty.memory_format", empty);
    library.impl("empty_strided", empty_strided);
    library.impl("as_strided", at::native::as_strided_tensorimpl);
    library.impl("view", at::native::view);
    library.impl("_reshape_alias", at::native::_reshape_alias);
    library.impl("unfold", at::native::unfold);
    library.impl("set_.source_Storage_storage_offset", set_storage);
    library.impl("resize_", resize_);
    library.impl("copy_", copy_);
    library.impl("_copy_from", copy_from);
    library.impl("_copy_from_and_resize", copy_from_and_resize);
    library.impl("_local_scalar_dense", local_scalar_dense);
}

TORCH_LIBRARY(pretend_mps, library) {
    library.def("host_alias(Tensor tensor) -> Tensor", torch::dispatch(c10::DispatchKey::MPS, host_alias));
    library.def("free_storage(Tensor tensor) -> ()", [](const Tensor& tensor) {
        tensor.storage().set_data_ptr_noswap(pretend::allocator()->allocate(0));
        tensor.storage().set_nbytes(0);
    });
    library.def("limit_memory(int bytes) -> ()",
                [](int64_t bytes) { pretend::limit_memory(static_cast<std::size_t>(bytes)); });
    library.def("fail_next_encoder() -> ()", [] { pretend::next_encoder_fails = true; });
    library.def("lose_next_encoder() -> ()", [] { pretend::next_encoder_is_null = true; });
    library.def("encoder_off_queue() -> ()", [] { at::mps::getCurrentMPSStream()->commandEncoder(); });
}
