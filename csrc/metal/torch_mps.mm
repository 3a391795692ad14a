// The extension module mps_flash_attn._metal: launches kernels on PyTorch's own MPS stream. The only file that knows
// ATen; Metal itself is behind the C functions of mfa.h.
//
// It does as PyTorch does with kernels that its users compile. The encoder is fetched on the stream's queue and left
// open, so that launches coalesce with PyTorch's; it runs dispatches one after the other, so they need no barriers. The
// profiler is told nothing, and what a capture has put in the encoder's place is used as it is. Nothing is committed
// and nothing waited for. The command buffer retains the buffers that are bound, and the allocator hands memory on
// within the one stream only, so tensors have to live no longer than the call.
//
// Objects of Metal are passed on as pointers and never messaged: what needs no Objective-C compiles as C++ too.
#include <ATen/core/Tensor.h>
#include <ATen/mps/MPSDevice.h>
#include <ATen/mps/MPSStream.h>
#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>
#include <dispatch/dispatch.h>
#include <pybind11/pybind11.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/version.h>

#include <array>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "../mfa.h"

namespace py = pybind11;

namespace {

constexpr uint32_t kMaxArguments = 31;  // [[buffer(0)]] to [[buffer(30)]]
constexpr uint64_t kMaxBytes = 4096;    // of one argument passed by value

// A call of mfa.h that failed.
class MetalError : public std::runtime_error {
  public:
    MetalError(MFAStatus status, const std::string& words) : std::runtime_error(words), status(status) {}
    const MFAStatus status;
};

void require(MFAStatus status) {
    if (status != MFA_OK) throw MetalError(status, mfa_last_error());
}

template <typename Object>
void* opaque(Object object) {
    return (void*)object;  // neither static_cast nor reinterpret_cast takes both an id and a void*
}

void* current_device() { return opaque(at::mps::MPSDevice::getInstance()->device()); }

const MFADeviceInfo& device_info() {
    static const MFADeviceInfo info = [] {
        MFADeviceInfo read{};
        require(mfa_device_info(current_device(), &read));
        return read;
    }();
    return info;
}

struct Encoding {
    at::mps::MPSStream* stream;
    const MFALaunch& launch;
    std::exception_ptr failure;
};

// Runs on the stream's queue, out of which no exception may come.
void encode_on_queue(void* context) noexcept {
    auto& encoding = *static_cast<Encoding*>(context);
    const auto encode = [&] {
        void* const encoder = opaque(encoding.stream->commandEncoder());
        if (encoder == nullptr) {
            throw MetalError(MFA_LAUNCH, "Metal gave PyTorch's stream no command encoder, as it does without memory");
        }
        require(mfa_encode(encoder, &encoding.launch, 1));
    };
    try {
#ifdef __OBJC__
        @autoreleasepool {  // Python's threads have none
            encode();
        }
#else
        encode();
#endif
    } catch (...) {
        encoding.failure = std::current_exception();
        if (!encoding.failure) {  // an exception of Objective-C
            encoding.failure = std::make_exception_ptr(std::runtime_error("Metal raised an Objective-C exception"));
        }
    }
}

void encode(const MFALaunch& launch) {
    at::mps::MPSStream* const stream = at::mps::getCurrentMPSStream();
    Encoding encoding{stream, launch, nullptr};
    dispatch_sync_f(static_cast<dispatch_queue_t>(stream->queue()), &encoding, encode_on_queue);
    if (encoding.failure) std::rethrow_exception(encoding.failure);
}

enum class Cast { none, int8, uint8, int16, int32, fp16, bf16 };

Cast to_cast(const std::string& name) {
    static constexpr std::pair<const char*, Cast> kCasts[] = {{"int8", Cast::int8},   {"uint8", Cast::uint8},
                                                              {"int16", Cast::int16}, {"int32", Cast::int32},
                                                              {"fp16", Cast::fp16},   {"bf16", Cast::bf16}};
    for (const auto& [known, cast] : kCasts) {
        if (name == known) return cast;
    }
    throw py::value_error("arg_casts has '" + name +
                          "'; accepted are 'int8', 'uint8', 'int16', 'int32', 'fp16' and 'bf16'");
}

// One launch: what its arguments are, and the bytes of those that are passed by value.
class Arguments {
  public:
    Arguments(const std::string& kernel, const py::tuple& arguments, const py::object& casts)
        : kernel_(kernel), casts_(casts) {
        if (arguments.size() > kMaxArguments) {
            throw py::type_error("kernel '" + kernel + "' got " + std::to_string(arguments.size()) +
                                 " arguments; Metal has " + std::to_string(kMaxArguments) + " buffers");
        }
        for (const py::handle argument : arguments) {
            if (THPVariable_Check(argument.ptr())) {
                add_tensor(THPVariable_Unpack(argument.ptr()));
            } else {
                add_value(argument);
            }
            ++index_;
        }
        for (uint32_t i = 0; i < bytes_count_; ++i) bytes_[i].data = values_.data() + starts_[i];
    }
    Arguments(const Arguments&) = delete;
    Arguments& operator=(const Arguments&) = delete;

    void fill(MFALaunch& launch) const {
        launch.buffers = buffers_.data();
        launch.buffer_count = buffer_count_;
        launch.bytes = bytes_.data();
        launch.bytes_count = bytes_count_;
    }

    // Elements of the first tensor, or -1.
    int64_t first_numel() const { return first_numel_; }

  private:
    std::string name() const { return "argument " + std::to_string(index_) + " of kernel '" + kernel_ + "'"; }

    void add_tensor(const at::Tensor& tensor) {
        if (!tensor.is_mps()) {
            throw py::value_error(name() + " is on " + tensor.device().str() + "; accepted are tensors on mps");
        }
        if (!tensor.has_storage()) throw py::value_error(name() + " has no storage, such as a sparse tensor");
        const int64_t element = static_cast<int64_t>(tensor.element_size());
        int64_t end = tensor.numel() == 0 ? 0 : tensor.storage_offset() + 1;  // elements of the storage that it needs
        for (int64_t i = 0; end != 0 && i < tensor.dim(); ++i) end += (tensor.size(i) - 1) * tensor.stride(i);
        const c10::Storage& storage = tensor.storage();
        if (storage.data() == nullptr || static_cast<int64_t>(storage.nbytes()) < end * element) {
            throw py::value_error(name() + " needs " + std::to_string(end * element) +
                                  " bytes of its storage, which has " + std::to_string(storage.nbytes()) +
                                  ": it is empty, or its memory was freed");
        }
        if (tensor.scalar_type() == at::kBFloat16 && device_info().supports_bfloat == 0) {
            throw py::type_error(name() +
                                 " is bfloat16, which needs macOS 14 or newer; accepted here: float16, float32");
        }
        buffers_[buffer_count_++] = {const_cast<void*>(storage.data()),
                                     static_cast<uint64_t>(tensor.storage_offset() * element), index_};
        if (first_numel_ < 0) first_numel_ = tensor.numel();
    }

    void add_value(const py::handle value) {
        starts_[bytes_count_] = values_.size();
        const Cast cast = current_cast();
        const bool is_list = PyList_Check(value.ptr()) || PyTuple_Check(value.ptr());
        PyObject* single = value.ptr();
        PyObject* const* const items = is_list ? PySequence_Fast_ITEMS(value.ptr()) : &single;
        const Py_ssize_t count = is_list ? PySequence_Fast_GET_SIZE(value.ptr()) : 1;
        const bool whole = count > 0 && PyLong_Check(items[0]);
        for (Py_ssize_t i = 0; i < count; ++i) add_number(items[i], whole, cast);
        const uint64_t length = values_.size() - starts_[bytes_count_];
        if (length == 0 || length > kMaxBytes) {
            throw py::value_error(name() + " takes " + std::to_string(length) + " bytes; accepted are 1 to " +
                                  std::to_string(kMaxBytes));
        }
        bytes_[bytes_count_++] = {nullptr, length, index_};
    }

    Cast current_cast() const {
        if (casts_.is_none()) return Cast::none;
        if (py::isinstance<py::str>(casts_)) return to_cast(casts_.cast<std::string>());
        const py::object cast = casts_.attr("get")(index_);
        return cast.is_none() ? Cast::none : to_cast(cast.cast<std::string>());
    }

    // `whole`: whether the first of the numbers is an int; without a cast that decides for all.
    void add_number(PyObject* number, bool whole, Cast cast) {
        if (!PyLong_Check(number) && (!PyFloat_Check(number) || (whole && cast == Cast::none))) {
            throw py::type_error(name() + " is or holds a " + Py_TYPE(number)->tp_name +
                                 "; accepted are mps tensors, int, float, and lists of either");
        }
        switch (cast) {
            case Cast::none:
                return whole ? append(to_int<int64_t>(number)) : append(to_float(number));
            case Cast::int8:
                return append(to_int<int8_t>(number));
            case Cast::uint8:
                return append(to_int<uint8_t>(number));
            case Cast::int16:
                return append(to_int<int16_t>(number));
            case Cast::int32:
                return append(to_int<int32_t>(number));
            case Cast::fp16:
                return append(c10::Half(to_float(number)));
            case Cast::bf16:
                return append(c10::BFloat16(to_float(number)));
        }
    }

    template <typename Int>
    Int to_int(PyObject* number) const {
        const py::int_ whole(py::reinterpret_borrow<py::object>(number));
        const long long value = PyLong_AsLongLong(whole.ptr());
        if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        if (value < std::numeric_limits<Int>::min() || value > std::numeric_limits<Int>::max()) {
            throw py::type_error(name() + ": " + std::to_string(value) + " does not fit its integer type");
        }
        return static_cast<Int>(value);
    }

    float to_float(PyObject* number) const {
        const double value = PyFloat_AsDouble(number);
        if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
        return static_cast<float>(value);
    }

    template <typename Value>
    void append(Value value) {
        const auto* const bytes = reinterpret_cast<const char*>(&value);
        values_.insert(values_.end(), bytes, bytes + sizeof(value));
    }

    const std::string& kernel_;
    const py::object& casts_;
    uint32_t index_ = 0;
    int64_t first_numel_ = -1;
    uint32_t buffer_count_ = 0;
    uint32_t bytes_count_ = 0;
    std::array<MFABuffer, kMaxArguments> buffers_;
    std::array<MFABytes, kMaxArguments> bytes_;
    std::array<std::size_t, kMaxArguments> starts_;  // of each of bytes_ in values_
    std::vector<char> values_;
};

// An int or one to three of them, each `least` or more; returns how many there were and fills up with 1.
int to_size(const std::string& kernel, const char* name, const py::handle value, long long least, uint32_t (&size)[3]) {
    const auto fail = [&] {
        throw py::value_error("kernel '" + kernel + "': " + name + " is " + py::repr(value).cast<std::string>() +
                              "; accepted is an int or one to three ints from " + std::to_string(least) +
                              " to 2**32 - 1");
    };
    const bool single = PyLong_Check(value.ptr());
    if (!single && !PyTuple_Check(value.ptr()) && !PyList_Check(value.ptr())) fail();
    const Py_ssize_t count = single ? 1 : PySequence_Fast_GET_SIZE(value.ptr());
    if (count < 1 || count > 3) fail();
    for (Py_ssize_t i = 0; i < 3; ++i) {
        if (i >= count) {
            size[i] = 1;
            continue;
        }
        PyObject* const item = single ? value.ptr() : PySequence_Fast_ITEMS(value.ptr())[i];
        const long long number = PyLong_Check(item) ? PyLong_AsLongLong(item) : -1;
        if (number < least || number > std::numeric_limits<uint32_t>::max()) {
            PyErr_Clear();
            fail();
        }
        size[i] = static_cast<uint32_t>(number);
    }
    return static_cast<int>(count);
}

// The number of a kernel, given up at the end.
class KernelNumber {
  public:
    KernelNumber() = default;
    KernelNumber(const KernelNumber&) = delete;
    KernelNumber& operator=(const KernelNumber&) = delete;
    ~KernelNumber() {
        if (value != 0) mfa_release_kernel(value);
    }

    int64_t value = 0;
};

class Kernel {
  public:
    Kernel(const std::string& source, std::string name) : name_(std::move(name)) {
        void* const device = current_device();
        const py::gil_scoped_release unlocked;
        require(mfa_kernel(device, source.c_str(), name_.c_str(), &number_.value));
        require(mfa_kernel_limits(number_.value, &max_threads_, &simd_width_, &threadgroup_bytes_));
    }

    const std::string& name() const { return name_; }
    uint32_t max_threads() const { return max_threads_; }
    uint32_t simd_width() const { return simd_width_; }
    uint32_t threadgroup_bytes() const { return threadgroup_bytes_; }

    void launch(const py::args& args, const py::object& threads, const py::object& group_size,
                const py::object& casts) const {
        const Arguments arguments(name_, args, casts);
        MFALaunch launch{};
        launch.kernel = number_.value;
        arguments.fill(launch);
        int rank = 1;
        if (!threads.is_none()) {
            rank = to_size(name_, "threads", threads, 0, launch.threads);
        } else if (arguments.first_numel() >= 0) {
            to_size(name_, "threads", py::int_(arguments.first_numel()), 0, launch.threads);
        } else {
            throw py::value_error("kernel '" + name_ + "': threads is needed, as no argument is a tensor");
        }
        if (group_size.is_none()) {
            to_size(name_, "group_size", py::int_(max_threads_), 1, launch.group_size);
        } else if (to_size(name_, "group_size", group_size, 1, launch.group_size) != rank) {
            throw py::value_error("kernel '" + name_ + "': group_size and threads must have equally many numbers");
        }
        if (launch.threads[0] == 0 || launch.threads[1] == 0 || launch.threads[2] == 0) return;
        const py::gil_scoped_release unlocked;  // the queue may be held by a thread that waits for Python
        encode(launch);
    }

  private:
    std::string name_;
    KernelNumber number_;
    uint32_t max_threads_ = 0;
    uint32_t simd_width_ = 0;
    uint32_t threadgroup_bytes_ = 0;
};

py::dict describe_device() {
    const MFADeviceInfo& info = device_info();
    py::dict fields;
    fields["name"] = info.name;
    fields["os_build"] = info.os_build;
    fields["gpu_family"] = info.gpu_family;
    fields["gpu_cores"] = info.gpu_cores;
    fields["has_unified_memory"] = info.has_unified_memory != 0;
    fields["supports_bfloat"] = info.supports_bfloat != 0;
    fields["max_threads_per_threadgroup"] = info.max_threads_per_threadgroup;
    fields["max_threadgroup_bytes"] = info.max_threadgroup_bytes;
    fields["max_buffer_bytes"] = info.max_buffer_bytes;
    fields["recommended_working_set_bytes"] = info.recommended_working_set_bytes;
    return fields;
}

py::dict cache_stats() {
    MFACacheStats stats{};
    require(mfa_cache_stats(&stats));
    py::dict fields;
    fields["memory_hits"] = stats.memory_hits;
    fields["libraries"] = stats.libraries;
    fields["archive_hits"] = stats.archive_hits;
    fields["compiled"] = stats.compiled;
    fields["evicted"] = stats.evicted;
    fields["archive_repairs"] = stats.archive_repairs;
    fields["pipelines"] = stats.pipelines;
    fields["kernels"] = stats.kernels;
    return fields;
}

// The Python exception for a failure on Metal's side.
py::object exception_type(MFAStatus status) {
    switch (status) {
        case MFA_INVALID:
            return py::reinterpret_borrow<py::object>(PyExc_ValueError);
        case MFA_COMPILE:
            return py::module_::import("mps_flash_attn.errors").attr("KernelCompileError");
        default:
            return py::module_::import("mps_flash_attn.errors").attr("KernelLaunchError");
    }
}

void raise(MFAStatus status, const char* words) { PyErr_SetString(exception_type(status).ptr(), words); }

}  // namespace

PYBIND11_MODULE(_metal, module) {
    // PyTorch's C++ changes from release to release.
    const auto running = py::module_::import("torch").attr("__version__").cast<std::string>();
    if (running.substr(0, running.find('+')) != TORCH_VERSION) {
        throw py::import_error("it was built for PyTorch " TORCH_VERSION ", this is " + running +
                               ": install mps-flash-attn again");
    }
    if (mfa_abi_version() != MFA_ABI_VERSION) {
        throw py::import_error("the Swift library has binary interface " + std::to_string(mfa_abi_version()) +
                               ", the extension " + std::to_string(MFA_ABI_VERSION) + ": build both anew");
    }
    py::register_local_exception_translator([](std::exception_ptr exception) {
        try {
            if (exception) std::rethrow_exception(exception);
        } catch (const MetalError& error) {
            raise(error.status, error.what());
        } catch (const c10::Error& error) {
            raise(MFA_LAUNCH, error.what_without_backtrace());
        }
    });

    py::class_<Kernel>(module, "Kernel")
        .def(py::init<const std::string&, std::string>(), py::arg("source"), py::arg("name"))
        .def_property_readonly("name", &Kernel::name)
        .def_property_readonly("max_threads_per_threadgroup", &Kernel::max_threads)
        .def_property_readonly("thread_execution_width", &Kernel::simd_width)
        .def_property_readonly("static_thread_group_memory_length", &Kernel::threadgroup_bytes)
        .def("__call__", &Kernel::launch, py::kw_only(), py::arg("threads") = py::none(),
             py::arg("group_size") = py::none(), py::arg("arg_casts") = py::none());
    module.def("device_info", &describe_device);
    module.def("cache_stats", &cache_stats);
    module.def(
        "configure",
        [](const std::string& folder, const std::string& version, uint32_t most_pipelines, uint64_t most_bytes) {
            require(mfa_configure(folder.c_str(), version.c_str(), most_pipelines, most_bytes));
        },
        py::arg("folder"), py::arg("package_version"), py::arg("most_pipelines"), py::arg("most_bytes"));
}
