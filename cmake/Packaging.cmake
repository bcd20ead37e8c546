# What is installed beside the binary, and the Debian package: `cmake --build DIR --target deb`.
set(oscarkv_package ${CMAKE_BINARY_DIR}/package)
set(oscarkv_generated ${oscarkv_package}/oscarkv.1.gz ${oscarkv_package}/oscarkv)
add_custom_command(OUTPUT ${oscarkv_package}/oscarkv.1.gz ${oscarkv_package}/oscarkv
  COMMAND ${CMAKE_COMMAND} -E make_directory ${oscarkv_package}/etc
  COMMAND sh -c "$<TARGET_FILE:oscarkv> docs --page man | gzip -9n > ${oscarkv_package}/oscarkv.1.gz"
  COMMAND sh -c "$<TARGET_FILE:oscarkv> docs --page completion > ${oscarkv_package}/oscarkv"
  DEPENDS oscarkv VERBATIM)
foreach(role kvstore prefill attention gateway)
  # The lines of the package, then every option with its default as a comment.
  add_custom_command(OUTPUT ${oscarkv_package}/etc/${role}.conf
    COMMAND ${CMAKE_COMMAND} -E make_directory ${oscarkv_package}/etc
    COMMAND sh -c "{ cat ${CMAKE_SOURCE_DIR}/deploy/config/${role}.conf; $<TARGET_FILE:oscarkv> docs --page config-${role}; } > ${oscarkv_package}/etc/${role}.conf"
    DEPENDS oscarkv ${CMAKE_SOURCE_DIR}/deploy/config/${role}.conf VERBATIM)
  list(APPEND oscarkv_generated ${oscarkv_package}/etc/${role}.conf)
endforeach()
add_custom_target(oscarkv_package_files ALL DEPENDS ${oscarkv_generated})
set(CMAKE_SKIP_INSTALL_ALL_DEPENDENCY ON)  # tests and benchmarks need not be built for it
add_custom_target(deb COMMAND cpack --config ${CMAKE_BINARY_DIR}/CPackConfig.cmake -B ${oscarkv_package} DEPENDS oscarkv_package_files
                  WORKING_DIRECTORY ${CMAKE_BINARY_DIR})

install(TARGETS oscarkv RUNTIME DESTINATION bin COMPONENT oscarkv)
if(OSCARKV_CUDA)  # the binary looks for it in ../lib
  install(TARGETS oscarkv_kernels_cuda LIBRARY DESTINATION lib COMPONENT oscarkv)
endif()
install(FILES ${oscarkv_package}/oscarkv.1.gz DESTINATION share/man/man1 COMPONENT oscarkv)
install(FILES ${oscarkv_package}/oscarkv DESTINATION share/bash-completion/completions COMPONENT oscarkv)
install(DIRECTORY ${oscarkv_package}/etc/ DESTINATION /etc/oscarkv COMPONENT oscarkv)
install(FILES ${CMAKE_SOURCE_DIR}/deploy/systemd/oscarkv@.service DESTINATION lib/systemd/system COMPONENT oscarkv)
install(DIRECTORY ${CMAKE_SOURCE_DIR}/models/reference DESTINATION share/oscarkv/models COMPONENT oscarkv)
install(FILES ${CMAKE_SOURCE_DIR}/README.md ${CMAKE_SOURCE_DIR}/docs/security.md DESTINATION share/doc/oscarkv COMPONENT oscarkv)

# The Debian package. Libraries are found by dpkg-shlibdeps.
set(CPACK_GENERATOR DEB)
# What is installed above, without the client library for other programs (component kvstore_client).
set(CPACK_INSTALL_CMAKE_PROJECTS "${CMAKE_BINARY_DIR};oscarkv;oscarkv;/")
set(CPACK_PACKAGE_NAME oscarkv)
set(CPACK_PACKAGE_VENDOR oscarkv)
set(CPACK_PACKAGE_CONTACT "The oscarkv authors <oscarkv@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "distributed 2-bit KV cache of large language models")
set(CPACK_PACKAGE_DESCRIPTION "KV nodes, prefill workers, attention workers and a gateway, as one binary with a
systemd unit per role, and a small model to try them on.")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
set(CPACK_SET_DESTDIR ON)
set(CPACK_INSTALL_PREFIX /usr)
set(CPACK_STRIP_FILES ON)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION net)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_DEPENDS adduser)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS gnuplot-nox)  # figures of calibrate's and eval's --report
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
file(WRITE ${oscarkv_package}/conffiles "/etc/oscarkv/kvstore.conf\n/etc/oscarkv/prefill.conf\n/etc/oscarkv/attention.conf\n/etc/oscarkv/gateway.conf\n")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA ${oscarkv_package}/conffiles ${CMAKE_SOURCE_DIR}/deploy/debian/postinst
  ${CMAKE_SOURCE_DIR}/deploy/debian/prerm ${CMAKE_SOURCE_DIR}/deploy/debian/postrm)
set(CPACK_DEBIAN_PACKAGE_CONTROL_STRICT_PERMISSION ON)
include(CPack)
