"""The changes that scripts/mutate.py makes to C++, and the tests that it runs for each kind of file."""

import pytest

from helpers import load_script

SOURCE = """#include <x.h>
constexpr int kSize = 4;
// a + b
int f(const int* a, int b) {
  if (a[1] && (b - 1) < 2) return -b;
  return a[0] * plan.key_pitch + 0.5f;
}
"""


@pytest.fixture(scope="module")
def mutants():
    return load_script("mutants")


@pytest.fixture(scope="module")
def mutate(mutants):
    return load_script("mutate")


def test_changes_of_cpp(mutants, tmp_path):
    file = tmp_path / "f.cpp"
    file.write_text(SOURCE)
    lines = SOURCE.splitlines()
    found = []
    for mutant in mutants.mutants_of(file):
        changed = mutant.source.splitlines()
        assert [i + 1 for i, line in enumerate(lines) if changed[i] != line] == [mutant.line]
        found.append(changed[mutant.line - 1].strip())
    assert found == [
        "if (true) return -b;",
        "if (a[2] && (b - 1) < 2) return -b;",
        "if (a[1] || (b - 1) < 2) return -b;",
        "if (a[1] && (b + 1) < 2) return -b;",
        "if (a[1] && (b - 2) < 2) return -b;",
        "if (a[1] && (b - 1) <= 2) return -b;",
        "if (a[1] && (b - 1) < 3) return -b;",
        "if (a[1] && (b - 1) < 2) return b;",
        "return a[1] * plan.key_pitch + 0.5f;",
        "return a[0] + plan.key_pitch + 0.5f;",
        "return a[0] * plan.value_pitch + 0.5f;",
        "return a[0] * plan.key_pitch - 0.5f;",
    ]


def test_every_file_of_the_kernels_has_tests(mutate):
    folder = mutate.PACKAGE / "kernels" / "grid"
    for name, rooms in {
        "compiled/cpp/fft.h": ["compiled"],
        "compiled/binding.py": ["compiled"],
        "triton/query_kernels.py": ["triton/test_query_first.py", "triton/test_kernels.py"],
    }.items():
        tests = mutate.tests_of(folder / name)
        assert [test for test in tests if any(test.endswith(f"tests/kernels/grid/{room}") for room in rooms)], name
