# nlohmann_json::nlohmann_json from bare headers: on an include path, or in the PyPI package nlohmann-json.
find_package(Python COMPONENTS Interpreter QUIET)
if(Python_FOUND)
  execute_process(
    COMMAND ${Python_EXECUTABLE} -c "import nlohmann_json as m; print(m.__path__[0] + '/include')"
    OUTPUT_VARIABLE nlohmann_json_in_python OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(NLOHMANN_JSON_INCLUDE_DIR nlohmann/json.hpp HINTS ${nlohmann_json_in_python})
if(NOT NLOHMANN_JSON_INCLUDE_DIR)
  message(FATAL_ERROR "nlohmann/json.hpp (3.11 or newer) was not found: install the Debian package nlohmann-json3-dev "
    "or the PyPI package nlohmann-json, or set NLOHMANN_JSON_INCLUDE_DIR")
endif()
add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED GLOBAL)
target_include_directories(nlohmann_json::nlohmann_json INTERFACE ${NLOHMANN_JSON_INCLUDE_DIR})
