"""scripts/check_layers.py finds what is planted in a small tree, and nothing else."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import check_layers
import cxx_functions

CLEAN = {
    "include/tensorstream/error.h": "// Errors. Layer: base.\n",
    "include/tensorstream/engine.h": (
        '// Engine.\n// Layer: engine.\n#include "tensorstream/error.h"\n'
    ),
    "csrc/base/units.h": "// Sizes.\n",
    "csrc/device/device.h": '// Devices.\n#include "base/units.h"\n',
    "csrc/memory/pool.cpp": '#include <vector>\n\n#include "device/device.h"\n',
    "csrc/store/checkpoint.cpp": '#include <nlohmann/json.hpp>\n#include "tensorstream/error.h"\n',
    "csrc/io/reader.h": "// Readers.\n",
    "csrc/engine/engine.cpp": '#include "tensorstream/engine.h"\n#include "io/reader.h"\n',
    "csrc/engine/CMakeLists.txt": "ts_add_layer(engine SOURCES engine.cpp BELOW ts_io ts_store)\n",
    "tests/cpp/device/device_suite.h": '// Behaviour.\n#include "device/device.h"\n',
    "tests/cpp/engine/engine_test.cpp": '#include "device/device_suite.h"\n#include <unistd.h>\n',
    "bindings/python/module.cpp": '#include <nanobind/nanobind.h>\n#include "io/reader.h"\n',
    "python/tensorstream/api.py": "import torch\n",
    "tests/python/test_api.py": "import torch\n",
}

PLANTED = [
    ("upward", "csrc/base/units.h", '// Sizes.\n#include "device/device.h"\n'),
    (
        "upward",
        "include/tensorstream/error.h",
        '// Layer: base.\n#include "tensorstream/engine.h"\n',
    ),
    ("upward", "tests/cpp/base/units_test.cpp", '#include "io/reader.h"\n'),
    ("upward", "csrc/device/device.h", '// Devices.\n  #  include "tensorstream/engine.h"\n'),
    ("sideways", "csrc/store/checkpoint.cpp", '#include "io/reader.h"\n'),
    ("private", "include/tensorstream/engine.h", '// Layer: engine.\n#include "io/reader.h"\n'),
    ("private", "examples/embed.cpp", '#include "../csrc/io/reader.h"\n'),
    ("private", "csrc/engine/engine.cpp", '#include "base/secret.h"\n'),
    ("no-such-header", "csrc/io/reader.h", '// Readers.\n#include "io/gone.h"\n'),
    ("no-layer", "include/tensorstream/plan.h", "// Plans.\n"),
    ("unknown-layer", "include/tensorstream/plan.h", "// Plans. Layer: planning.\n"),
    ("unknown-layer", "csrc/planning/plan.cpp", "\n"),
    ("owned-header", "csrc/engine/engine.cpp", "#include <torch/torch.h>\n"),
    ("owned-header", "tests/cpp/engine/engine_test.cpp", "#include <ATen/ATen.h>\n"),
    ("owned-header", "csrc/io/reader.h", "// Readers.\n#include <sys/mman.h>\n"),
    ("owned-header", "csrc/engine/engine.cpp", "#include <nlohmann/json.hpp>\n"),
    ("torch", "scripts/measure.py", "import torch.cuda\n"),
    ("torch", "bindings/python/generate.py", "def f():\n    from torch import nn\n"),
    ("link", "csrc/io/CMakeLists.txt", "ts_add_layer(io SOURCES a.cpp\n  BELOW ts_store)\n"),
    ("long-file", "csrc/io/reader.h", "// Readers.\n" + "int a;\n" * 500),
    ("long-function", "csrc/io/reader.cpp", "int f() {\n" + "  g();\n" * 59 + "}\n"),
    ("long-function", "python/tensorstream/api.py", "def f():\n" + "    g()\n" * 60),
    ("name", "csrc/base/string_utils.h", "// Strings.\n"),
    ("name", "python/tensorstream/core/__init__.py", ""),
]


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def rules(root: Path) -> list[tuple[str, str]]:
    return [(finding.rule, finding.path) for finding in check_layers.check(root)[0]]


def test_a_clean_tree_has_no_findings(tmp_path):
    write_tree(tmp_path, CLEAN)
    assert check_layers.check(tmp_path) == ([], [])


@pytest.mark.parametrize(("rule", "path", "text"), PLANTED)
def test_a_planted_violation_is_the_only_finding(tmp_path, rule, path, text):
    write_tree(tmp_path, CLEAN | {"csrc/base/secret.h": "// Private to base.\n", path: text})
    assert rules(tmp_path) == [(rule, path)]


def test_the_line_of_an_include_is_told(tmp_path):
    write_tree(tmp_path, CLEAN | {"csrc/io/reader.h": '// R.\n\n\n#include "io/gone.h"\n'})
    assert [finding.line for finding in check_layers.check(tmp_path)[0]] == [4]


def test_a_long_file_with_a_reason_is_a_warning(tmp_path, monkeypatch):
    long = {"csrc/io/table.cpp": "int a;\n" * 501}
    write_tree(tmp_path, CLEAN | long)
    monkeypatch.setitem(check_layers.LONGER_FOR_A_REASON, "csrc/io/table.cpp", "one table")
    findings, allowed = check_layers.check(tmp_path)
    assert (findings, [finding.path for finding in allowed]) == ([], ["csrc/io/table.cpp"])


def test_an_allowance_that_is_not_needed_is_a_finding(tmp_path, monkeypatch):
    write_tree(tmp_path, CLEAN)
    monkeypatch.setitem(check_layers.LONGER_FOR_A_REASON, "csrc/io/gone.cpp", "one table")
    assert rules(tmp_path) == [("stale-allowance", "csrc/io/gone.cpp")]


def test_function_lengths_see_through_literals_and_initialisers():
    text = """
namespace a {
struct S {
  explicit S(int a, T t = {}) : a_{a}, b_{'{'} {
    go("}");  // }
  }
  int a_ = 1'000;
};
constexpr int kTable[] = {
    1, 2};
template <class T>
  requires(sizeof(T) > 1)
int f(T) noexcept {
  return [] { return 1; }();
}
}  // namespace a
"""
    assert list(cxx_functions.functions_of(text)) == [("S", 4, 3), ("f", 11, 5)]
