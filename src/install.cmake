# What `cmake --install` puts where; included by the top CMakeLists.txt. The tree may be moved
# afterwards: neither ie-config.cmake nor libie.pc holds an absolute path.
include(CMakePackageConfigHelpers)

set(IE_INSTALL_CMAKEDIR ${CMAKE_INSTALL_LIBDIR}/cmake/ie)
set(IE_INSTALL_PCDIR ${CMAKE_INSTALL_LIBDIR}/pkgconfig)
set(IE_INSTALL_DATADIR ${CMAKE_INSTALL_DATAROOTDIR}/ie)

# Two export sets, so that ie::ie needs nothing that only ie::static does.
install(TARGETS ie_shared EXPORT ie_targets)
install(TARGETS ie_static EXPORT ie_static_targets)
install(EXPORT ie_targets NAMESPACE ie:: FILE ie-targets.cmake DESTINATION ${IE_INSTALL_CMAKEDIR})
install(EXPORT ie_static_targets NAMESPACE ie:: FILE ie-static-targets.cmake
    DESTINATION ${IE_INSTALL_CMAKEDIR})
configure_package_config_file(${PROJECT_SOURCE_DIR}/src/ie-config.cmake.in
    ${PROJECT_BINARY_DIR}/ie-config.cmake INSTALL_DESTINATION ${IE_INSTALL_CMAKEDIR}
    PATH_VARS IE_INSTALL_DATADIR)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/ie-config-version.cmake
    COMPATIBILITY SameMinorVersion) # before 1.0 a minor version may change the API
install(FILES ${PROJECT_BINARY_DIR}/ie-config.cmake ${PROJECT_BINARY_DIR}/ie-config-version.cmake
    DESTINATION ${IE_INSTALL_CMAKEDIR})

file(RELATIVE_PATH IE_PC_PREFIX /prefix/${IE_INSTALL_PCDIR} /prefix)
string(REGEX REPLACE "/$" "" IE_PC_PREFIX ${IE_PC_PREFIX})
configure_file(${PROJECT_SOURCE_DIR}/src/libie.pc.in ${PROJECT_BINARY_DIR}/libie.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/libie.pc DESTINATION ${IE_INSTALL_PCDIR})

install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/ie DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
    FILES_MATCHING PATTERN "*.h")
install(DIRECTORY ${PROJECT_SOURCE_DIR}/migrations DESTINATION ${IE_INSTALL_DATADIR}
    FILES_MATCHING PATTERN "*.sql")
# The suite that a publisher from outside runs against its own table.
install(FILES ${PROJECT_SOURCE_DIR}/tests/publishers/conformance.c
    ${PROJECT_SOURCE_DIR}/tests/publishers/conformance.h
    DESTINATION ${IE_INSTALL_DATADIR}/conformance)
foreach(document LICENSE CHANGELOG.md README.md)
    if(EXISTS ${PROJECT_SOURCE_DIR}/${document})
        install(FILES ${PROJECT_SOURCE_DIR}/${document} DESTINATION ${CMAKE_INSTALL_DOCDIR})
    endif()
endforeach()

if(TARGET ie)
    # The library of the same tree, wherever that stands.
    file(RELATIVE_PATH IE_BIN_TO_LIB /prefix/${CMAKE_INSTALL_BINDIR} /prefix/${CMAKE_INSTALL_LIBDIR})
    set_target_properties(ie PROPERTIES INSTALL_RPATH "$ORIGIN/${IE_BIN_TO_LIB}")
    install(TARGETS ie)
    set(IE_BINARY ${CMAKE_INSTALL_FULL_BINDIR}/ie)
    configure_file(${PROJECT_SOURCE_DIR}/samples/systemd/ie-bus.service.in
        ${PROJECT_BINARY_DIR}/ie-bus.service @ONLY)
    install(FILES ${PROJECT_BINARY_DIR}/ie-bus.service DESTINATION ${IE_INSTALL_DATADIR}/systemd)
endif()
foreach(section 1 3 5 7 8)
    file(GLOB pages CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/src/*/*.${section}
        ${PROJECT_SOURCE_DIR}/outbox/*.${section} ${PROJECT_SOURCE_DIR}/publishers/*/*.${section})
    if(pages)
        install(FILES ${pages} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
    endif()
endforeach()
