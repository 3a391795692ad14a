// The extension module mps_flash_attn._C: the only file that knows Python.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#if defined(__linux__)
#include <link.h>
#endif

#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "simulator/check_launch.h"
#include "simulator/executor.h"

namespace py = pybind11;

namespace {

// A compiled kernel library, loaded for as long as anything refers to it.
class Library {
  public:
    explicit Library(std::string path) : path_(std::move(path)), handle_(dlopen(path_.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) throw std::runtime_error(dlerror());
        const auto* const abi = static_cast<const uint32_t*>(dlsym(handle_, "simt_abi"));
        if (abi == nullptr || *abi != simt::kAbiVersion) {
            dlclose(handle_);
            throw std::runtime_error(path_ + " is not a kernel library of binary interface " +
                                     std::to_string(simt::kAbiVersion));
        }
        // Instrumented libraries report from now on; their static initialisers have run.
        auto* const observed = static_cast<bool*>(dlsym(handle_, "simt_observed"));
        if (observed != nullptr) *observed = true;
    }
    ~Library() { dlclose(handle_); }
    Library(const Library&) = delete;
    Library& operator=(const Library&) = delete;

    simt::Kernel kernel(unsigned index) const {
        const std::string symbol = "simt_kernel_" + std::to_string(index);
        void* const address = dlsym(handle_, symbol.c_str());
        if (address == nullptr) throw std::runtime_error("the kernel library has no " + symbol);
        return reinterpret_cast<simt::Kernel>(address);
    }

    simt::LibraryRange range() const {
        Dl_info info;
        dladdr(dlsym(handle_, "simt_abi"), &info);
        const auto base = reinterpret_cast<uintptr_t>(info.dli_fbase);
#if defined(__linux__)
        simt::LibraryRange range{base, base};
        dl_iterate_phdr(
            [](dl_phdr_info* library, std::size_t, void* result) {
                auto& found = *static_cast<simt::LibraryRange*>(result);
                if (library->dlpi_addr != found.begin) return 0;
                for (int i = 0; i < library->dlpi_phnum; ++i) {
                    const auto& segment = library->dlpi_phdr[i];
                    if (segment.p_type != PT_LOAD) continue;
                    found.end = std::max<uintptr_t>(found.end, found.begin + segment.p_vaddr + segment.p_memsz);
                }
                return 1;
            },
            &range);
        return range;
#else
        return {base, base + kLargestLibrary};
#endif
    }

    const std::string& path() const { return path_; }

  private:
#if !defined(__linux__)
    static constexpr uintptr_t kLargestLibrary = uintptr_t{1} << 24;  // bytes that a library is taken to span
#endif
    std::string path_;
    void* handle_;
};

simt::Size to_size(const py::tuple& values) {
    return {values[0].cast<uint32_t>(), values[1].cast<uint32_t>(), values[2].cast<uint32_t>()};
}

// A buffer as Python describes it: the fields of simt::Buffer, bytes in the place of an address to pass them by value.
simt::Buffer to_buffer(const py::tuple& fields) {
    const py::handle place = fields[1];
    void* const address = PyBytes_Check(place.ptr()) ? PyBytes_AS_STRING(place.ptr()) : PyLong_AsVoidPtr(place.ptr());
    return {fields[0].cast<std::string>(), address,
            fields[2].cast<std::size_t>(), fields[3].cast<uint32_t>(),
            fields[4].cast<bool>(),        fields[5].cast<std::string>()};
}

// An argument as Python describes it: (buffer, the buffers that it holds the addresses of).
simt::Argument to_argument(const py::tuple& fields) {
    simt::Argument argument{to_buffer(fields[0]), {}};
    for (const py::handle target : fields[1].cast<py::tuple>()) {
        argument.targets.push_back(to_buffer(py::reinterpret_borrow<py::tuple>(target)));
    }
    return argument;
}

std::vector<simt::Argument> to_arguments(const py::tuple& arguments) {
    std::vector<simt::Argument> converted;
    for (const py::handle argument : arguments) {
        converted.push_back(to_argument(py::reinterpret_borrow<py::tuple>(argument)));
    }
    return converted;
}

// Runs Python's signal handlers. Whether one of them raised an exception, such as KeyboardInterrupt.
bool is_interrupted() {
    const py::gil_scoped_acquire locked;
    return PyErr_CheckSignals() != 0;
}

class Kernel {
  public:
    Kernel(std::shared_ptr<Library> library, unsigned index, std::string name)
        : library_(std::move(library)), kernel_(library_->kernel(index)), name_(std::move(name)) {}

    const std::shared_ptr<Library>& library() const { return library_; }

    // arguments[n] fills buffer n: an int is a device address, bytes are passed by value.
    void launch(const py::tuple& arguments, const py::tuple& threads, const py::tuple& group_size,
                std::size_t threadgroup_bytes, unsigned os_threads) const {
        std::array<void*, simt::kMaxBuffers> buffers{};
        if (arguments.size() > buffers.size()) throw py::value_error("too many buffers");
        for (std::size_t i = 0; i < arguments.size(); ++i) {
            PyObject* const argument = arguments[i].ptr();
            if (PyBytes_Check(argument)) {
                buffers[i] = PyBytes_AS_STRING(argument);
            } else {
                buffers[i] = PyLong_AsVoidPtr(argument);
                if (PyErr_Occurred() != nullptr) throw py::error_already_set();
            }
        }
        const simt::Launch launch = describe(buffers.data(), threads, group_size, threadgroup_bytes, os_threads);
        const py::gil_scoped_release unlocked;
        simt::run_launch(launch);
    }

    simt::Counters count(const py::tuple& arguments, const py::tuple& threads, const py::tuple& group_size,
                         std::size_t threadgroup_bytes, unsigned os_threads) const {
        return count_into(nullptr, arguments, threads, group_size, threadgroup_bytes, os_threads);
    }

    std::pair<simt::Counters, simt::Transactions> count_transactions(const py::tuple& arguments,
                                                                     const py::tuple& threads,
                                                                     const py::tuple& group_size,
                                                                     std::size_t threadgroup_bytes,
                                                                     unsigned os_threads) const {
        simt::Transactions transactions{};
        const simt::Counters counters =
            count_into(&transactions, arguments, threads, group_size, threadgroup_bytes, os_threads);
        return {counters, transactions};
    }

    std::vector<std::string> check(const py::tuple& arguments, const py::tuple& threads, const py::tuple& group_size,
                                   std::size_t threadgroup_bytes, uint64_t seed, unsigned random_schedules) const {
        const std::vector<simt::Argument> converted = to_arguments(arguments);
        const simt::Launch launch = describe(nullptr, threads, group_size, threadgroup_bytes, 1);
        const py::gil_scoped_release unlocked;
        return simt::check_launch(launch, converted, library_->range(), seed, random_schedules);
    }

  private:
    simt::Counters count_into(simt::Transactions* transactions, const py::tuple& arguments, const py::tuple& threads,
                              const py::tuple& group_size, std::size_t threadgroup_bytes, unsigned os_threads) const {
        std::array<void*, simt::kMaxBuffers> buffers{};
        std::vector<simt::Buffer> memory;
        std::size_t i = 0;
        for (const simt::Argument& argument : to_arguments(arguments)) {
            buffers.at(i++) = argument.buffer.address;
            memory.push_back(argument.buffer);
            memory.insert(memory.end(), argument.targets.begin(), argument.targets.end());
        }
        const simt::Launch launch = describe(buffers.data(), threads, group_size, threadgroup_bytes, os_threads);
        const py::gil_scoped_release unlocked;
        return simt::count_launch(launch, memory, transactions);
    }

    simt::Launch describe(void* const* buffers, const py::tuple& threads, const py::tuple& group_size,
                          std::size_t threadgroup_bytes, unsigned os_threads) const {
        const simt::Size size = to_size(group_size);
        const uint64_t group_threads = simt::count(size);
        if (group_threads == 0 || group_threads > simt::kMaxThreads)
            throw py::value_error("group_size is out of range");
        return {kernel_, name_.c_str(), buffers, to_size(threads), size, threadgroup_bytes, os_threads, is_interrupted};
    }

    std::shared_ptr<Library> library_;
    simt::Kernel kernel_;
    std::string name_;
};

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.attr("ABI_VERSION") = simt::kAbiVersion;
    module.attr("MAX_BUFFERS") = simt::kMaxBuffers;
    module.attr("MAX_THREADS") = simt::kMaxThreads;
    module.attr("LANES") = simt::kLanes;

    // LaunchError lives in mps_flash_attn.errors, which does not need this module.
    static py::object& launch_error =
        *new py::object(py::module_::import("mps_flash_attn.errors").attr("KernelLaunchError"));
    py::register_local_exception_translator([](std::exception_ptr exception) {
        try {
            if (exception) std::rethrow_exception(exception);
        } catch (const simt::LaunchError& error) {
            PyErr_SetString(launch_error.ptr(), error.what());
        } catch (const simt::LaunchInterrupted&) {
            // The signal handler's exception is set already.
        }
    });

    py::class_<Library, std::shared_ptr<Library>>(module, "Library")
        .def(py::init<std::string>(), py::arg("path"))
        .def_property_readonly("path", &Library::path);
    py::class_<Kernel>(module, "Kernel")
        .def(py::init<std::shared_ptr<Library>, unsigned, std::string>(), py::arg("library"), py::arg("index"),
             py::arg("name"))
        .def_property_readonly("library", &Kernel::library)
        .def("launch", &Kernel::launch, py::arg("arguments"), py::arg("threads"), py::arg("group_size"),
             py::arg("threadgroup_bytes"), py::arg("os_threads"))
        .def("count", &Kernel::count, py::arg("arguments"), py::arg("threads"), py::arg("group_size"),
             py::arg("threadgroup_bytes"), py::arg("os_threads"))
        .def("count_transactions", &Kernel::count_transactions, py::arg("arguments"), py::arg("threads"),
             py::arg("group_size"), py::arg("threadgroup_bytes"), py::arg("os_threads"))
        .def("check", &Kernel::check, py::arg("arguments"), py::arg("threads"), py::arg("group_size"),
             py::arg("threadgroup_bytes"), py::arg("seed"), py::arg("random_schedules"));

    py::class_<simt::Counters>(module, "Counters")
        .def_readonly("matrix_products", &simt::Counters::matrix_products)
        .def_readonly("exponentials", &simt::Counters::exponentials)
        .def_readonly("threadgroup_barriers", &simt::Counters::threadgroup_barriers)
        .def_readonly("simdgroup_barriers", &simt::Counters::simdgroup_barriers)
        .def_readonly("device_bytes_read", &simt::Counters::device_bytes_read)
        .def_readonly("device_bytes_written", &simt::Counters::device_bytes_written)
        .def_readonly("threadgroup_bytes_read", &simt::Counters::threadgroup_bytes_read)
        .def_readonly("threadgroup_bytes_written", &simt::Counters::threadgroup_bytes_written);
    py::class_<simt::Transactions>(module, "Transactions")
        .def_readonly("device_accesses", &simt::Transactions::device_accesses)
        .def_readonly("device_segments", &simt::Transactions::device_segments)
        .def_readonly("threadgroup_accesses", &simt::Transactions::threadgroup_accesses)
        .def_readonly("threadgroup_passes", &simt::Transactions::threadgroup_passes)
        .def_readonly("threadgroup_conflicts", &simt::Transactions::threadgroup_conflicts);
}
