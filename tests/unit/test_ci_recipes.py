"""The recipes for CI services: what their own schemas say of them, and that what they name is there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from ci.night.job import ROOT
from pytest_spapr.builds.packages import SOURCES
from pytest_spapr.images import recipe

_GITHUB = ("--builtin-schema", "vendor.github-workflows")
_GITLAB = ("--builtin-schema", "vendor.gitlab-ci", "--data-transform", "gitlab-ci")
_RECIPES = [("ci/github/tests.yml", _GITHUB), ("ci/github/nightly.yml", _GITHUB), ("ci/gitlab.yml", _GITLAB)]


@pytest.mark.parametrize(("name", "schema"), _RECIPES)
def test_a_recipe_is_what_its_service_takes(name: str, schema: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(ROOT / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("name", "schema"), _RECIPES)
def test_what_is_none_is_told(tmp_path: Path, name: str, schema: tuple[str, ...]) -> None:
    broken = tmp_path / "broken.yml"
    # The jobs of either service have it, and it is no text.
    broken.write_text(re.sub(r"(timeout(-minutes)?):.*", r"\1: [soon]", (ROOT / name).read_text()))
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(broken)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("name", [name for name, _ in _RECIPES])
def test_what_a_recipe_names_is_there(name: str) -> None:
    text = re.sub(r"#.*", "", (ROOT / name).read_text())
    commands = re.findall(r"^\s*- (?:run: )?(ci/\S+)", text, re.MULTILINE)
    assert commands
    named = re.findall(r"\b(?:ci|guest-images|pytest_spapr)/[\w./-]*\w(?=[\s'\"]|$)", text)
    assert [path for path in (*commands, *named) if not (ROOT / path).exists()] == []
    assert set(re.findall(r'(?:qemu|SPAPR_QEMU): "([^"$]+)"', text)) <= set(SOURCES)
    for image in re.findall(r"(?:image|SPAPR_IMAGE): (debian-\d+\S*?)[},\s]", text):
        recipe.load(image)


@pytest.mark.parametrize("name", [name for name, schema in _RECIPES if schema is _GITHUB])
def test_what_is_restored_is_saved_whatever_the_tests_came_to(name: str) -> None:
    """actions/cache alone saves nothing after a step that failed."""
    yaml = pytest.importorskip("yaml")
    steps = yaml.safe_load((ROOT / name).read_text())["jobs"]["tcg"]["steps"]
    ran = next(place for place, step in enumerate(steps) if step.get("run", "").startswith("ci/"))
    assert not [step for step in steps if step.get("uses", "").startswith("actions/cache@")]
    restored = {step["id"]: step["with"]["path"] for step in steps[:ran] if "cache/restore@" in step.get("uses", "")}
    saved = [step for step in steps[ran:] if "cache/save@" in step.get("uses", "")]
    assert sorted(step["with"]["path"] for step in saved) == sorted(restored.values())
    for step in saved:
        assert step["if"].startswith("always() && ")
        [whose] = [one for one, path in restored.items() if path == step["with"]["path"]]
        assert step["with"]["key"].partition("${{ job.")[0] == f"${{{{ steps.{whose}.outputs.cache-primary-key }}}}"
