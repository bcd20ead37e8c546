# Third-party libraries, all from Debian 12. Each is wrapped so that its headers count as system headers.
find_package(Threads REQUIRED)
find_package(absl REQUIRED)
find_package(Protobuf REQUIRED)
find_package(gRPC CONFIG REQUIRED)
find_package(prometheus-cpp CONFIG REQUIRED)
find_package(spdlog CONFIG REQUIRED)
find_package(CLI11 CONFIG REQUIRED)
find_package(nlohmann_json CONFIG REQUIRED)
find_package(ucx CONFIG REQUIRED)
find_package(hwy CONFIG REQUIRED)
find_package(OpenSSL REQUIRED)
find_package(ZLIB REQUIRED)
find_package(Boost 1.74 REQUIRED)  # headers: Beast and Asio
find_package(Eigen3 REQUIRED NO_MODULE)
find_package(OpenMP REQUIRED)
find_package(PkgConfig REQUIRED)
pkg_check_modules(pcre2 REQUIRED IMPORTED_TARGET libpcre2-8)
pkg_check_modules(utf8proc REQUIRED IMPORTED_TARGET libutf8proc)

# Debian's dnnl-config.cmake insists on OpenCL; the library itself does not need it.
find_library(DNNL_LIBRARY dnnl REQUIRED)
find_path(DNNL_INCLUDE_DIR oneapi/dnnl/dnnl.hpp REQUIRED)
add_library(dnnl_imported UNKNOWN IMPORTED)
set_target_properties(dnnl_imported PROPERTIES IMPORTED_LOCATION ${DNNL_LIBRARY}
                      INTERFACE_INCLUDE_DIRECTORIES ${DNNL_INCLUDE_DIR})

# Debian's RocksDBConfig.cmake asks for the development files of all that RocksDB was built with.
find_library(ROCKSDB_LIBRARY rocksdb REQUIRED)
find_path(ROCKSDB_INCLUDE_DIR rocksdb/db.h REQUIRED)
add_library(rocksdb_imported UNKNOWN IMPORTED)
set_target_properties(rocksdb_imported PROPERTIES IMPORTED_LOCATION ${ROCKSDB_LIBRARY}
                      INTERFACE_INCLUDE_DIRECTORIES ${ROCKSDB_INCLUDE_DIR})

if(OSCARKV_TESTS)
  find_package(GTest REQUIRED)
endif()
if(OSCARKV_BENCH)
  find_package(benchmark REQUIRED)
endif()
