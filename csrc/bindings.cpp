// The extension module mps_flash_attn._C: the only file that knows Python.
#include <dlfcn.h>
#include <pybind11/pybind11.h>

#include <array>
#include <memory>
#include <string>
#include <utility>

#include "simulator/executor.h"

namespace py = pybind11;

namespace {

// A compiled kernel library, loaded for as long as anything refers to it.
class Library {
public:
    explicit Library(const std::string& path) : handle_(dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) {
        if (handle_ == nullptr) throw std::runtime_error(dlerror());
        const auto* const abi = static_cast<const uint32_t*>(dlsym(handle_, "simt_abi"));
        if (abi == nullptr || *abi != simt::kAbiVersion) {
            dlclose(handle_);
            throw std::runtime_error(path + " is not a kernel library of binary interface " +
                                     std::to_string(simt::kAbiVersion));
        }
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

private:
    void* handle_;
};

simt::Size to_size(const py::tuple& values) {
    return {values[0].cast<uint32_t>(), values[1].cast<uint32_t>(), values[2].cast<uint32_t>()};
}

class Kernel {
public:
    Kernel(std::shared_ptr<Library> library, unsigned index, std::string name)
        : library_(std::move(library)), kernel_(library_->kernel(index)), name_(std::move(name)) {}

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
        const simt::Launch launch{kernel_,           name_.c_str(),     buffers.data(), to_size(threads),
                                  to_size(group_size), threadgroup_bytes, os_threads};
        const py::gil_scoped_release unlocked;
        simt::run_launch(launch);
    }

private:
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
    static py::object& launch_error = *new py::object(
        py::module_::import("mps_flash_attn.errors").attr("KernelLaunchError"));
    py::register_local_exception_translator([](std::exception_ptr exception) {
        try {
            if (exception) std::rethrow_exception(exception);
        } catch (const simt::LaunchError& error) {
            PyErr_SetString(launch_error.ptr(), error.what());
        }
    });

    py::class_<Library, std::shared_ptr<Library>>(module, "Library").def(py::init<std::string>(), py::arg("path"));
    py::class_<Kernel>(module, "Kernel")
        .def(py::init<std::shared_ptr<Library>, unsigned, std::string>(), py::arg("library"), py::arg("index"),
             py::arg("name"))
        .def("launch", &Kernel::launch, py::arg("arguments"), py::arg("threads"), py::arg("group_size"),
             py::arg("threadgroup_bytes"), py::arg("os_threads"));
}
