"""What the scripts say of the project is so."""

from __future__ import annotations

import ast
import re
import tomllib

import mutants
import oldest
import pytest

from tests.conftest import ROOT


def test_the_oldest_protobuf_runs_what_is_generated() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (constraint,) = (line for line in oldest.oldest(project) if line.startswith("protobuf=="))
    generated = list(ROOT.glob("helperd/**/*_pb2.py"))
    assert generated
    for path in generated:
        made_with = re.search("^# Protobuf Python Version: (.*)$", path.read_text(), re.MULTILINE)
        assert made_with is not None
        assert constraint == f"protobuf=={made_with[1]}"


def test_a_requirement_needs_a_lower_bound() -> None:
    project = {"dependencies": ["lz4"], "optional-dependencies": {"dev": ["anything"]}}
    with pytest.raises(ValueError, match="lz4: no lower bound"):
        oldest.oldest(project)


@pytest.mark.parametrize("module", mutants.TESTS)
def test_mutants_are_programs(module: str) -> None:
    source = (ROOT / module).read_bytes()
    found = mutants.mutants_of(module)
    assert found
    for mutant in found[:: max(1, len(found) // 20)]:
        changed = mutant.applied_to(source)
        assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source)), mutant


def test_what_is_explained_can_happen() -> None:
    for key in mutants.explained():
        assert any(mutants._key(mutant) == key for mutant in mutants.mutants_of(key[0])), key


def test_every_module_with_rules_has_tests() -> None:
    for module, tests in mutants.TESTS.items():
        assert (ROOT / module).is_file(), module
        for name in tests:
            assert (ROOT / name).exists(), name
