# Script: writes OUTPUT, a C++ file with a constant `const unsigned char k<NAME>[]` for each of FILES ("Name=path", separated by commas) and
# their sizes, in the namespace oscarkv::gateway::embedded.
string(REPLACE "," ";" files "${FILES}")
set(code "// Generated from gateway/console.\n#include <cstddef>\nnamespace oscarkv::gateway::embedded {\n")
foreach(entry ${files})
  string(REGEX MATCH "^([^=]+)=(.*)$" matched "${entry}")
  set(name ${CMAKE_MATCH_1})
  file(READ "${CMAKE_MATCH_2}" hex HEX)
  string(REGEX REPLACE "(..)" "0x\\1," bytes "${hex}")
  string(APPEND code "extern const unsigned char k${name}[];\nextern const size_t k${name}Size;\n"
                     "const unsigned char k${name}[] = {${bytes}};\nconst size_t k${name}Size = sizeof(k${name});\n")
endforeach()
file(WRITE "${OUTPUT}" "${code}}\n")
