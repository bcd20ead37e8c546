# Script: writes OUTPUT, a header with the commit of SOURCE, when it differs. Run at every build (cli/CMakeLists.txt). A tree without git, such as
# the image's, gives its COMMIT by hand.
if(NOT COMMIT)
  execute_process(COMMAND git -C ${SOURCE} describe --always --dirty --abbrev=12 --exclude=*
                  OUTPUT_VARIABLE COMMIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
if(NOT COMMIT)
  set(COMMIT unknown)
endif()
file(CONFIGURE OUTPUT ${OUTPUT} CONTENT "#define OSCARKV_COMMIT \"${COMMIT}\"\n")
