"""The project's own files: they agree with each other, and the two commands of the README set themselves up."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pairs = [line.split("==") for line in lines if line]
    return {canonicalize_name(name): version for name, version in pairs}


def test_every_dependency_is_pinned_within_its_range() -> None:
    optional = [item for extra in PROJECT["optional-dependencies"].values() for item in extra]
    for item in [*PROJECT["dependencies"], *optional]:
        requirement = Requirement(item)
        if requirement.name != PROJECT["name"]:
            assert pins()[canonicalize_name(requirement.name)] in requirement.specifier


def test_torch_and_torchaudio_move_as_a_pair() -> None:
    assert pins()["torch"] == pins()["torchaudio"]
    ranges = {Requirement(item).name: Requirement(item).specifier for item in PROJECT["dependencies"]}
    assert ranges["torch"] == ranges["torchaudio"]


def test_versions_and_licence_agree() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert f"## [{PROJECT['version']}]" in (ROOT / "CHANGELOG.md").read_text()
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text and "END OF TERMS AND CONDITIONS" in text
    assert (ROOT / "speech_adapters" / "py.typed").exists()


@needs_make
def test_help_names_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"^\s*make (\w+) +\S", shown, re.M))
    documented = {"help", "demo", "test", "lint", "format", "docs", "tutorials", "benchmarks", "constraints", "clean"}
    assert targets == documented


@needs_make
@pytest.mark.parametrize(("target", "command"), [("demo", "recipes/asr_librispeech.py"), ("test", "-m pytest")])
def test_commands_set_up_the_environment_when_it_is_missing_or_old(tmp_path: Path, target: str, command: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)

    def plan() -> str:
        return subprocess.run(["make", "-n", target], cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    assert "-m venv .venv" in plan() and "-c constraints.txt -e" in plan() and command in plan()
    (tmp_path / ".venv").mkdir()
    ready = tmp_path / ".venv" / ".ready"
    ready.touch()
    assert "-m venv" not in plan() and command in plan()
    for name in ("pyproject.toml", "constraints.txt"):
        os.utime(tmp_path / name, (ready.stat().st_mtime + 10,) * 2)
        assert "-c constraints.txt -e" in plan()
        os.utime(tmp_path / name, (ready.stat().st_mtime - 10,) * 2)


def test_ci_script_is_executable_and_parses() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", script], check=True)


def test_pre_commit_hooks_are_local() -> None:
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in repos} == {"local"}


SLOW = ("torch", "torchaudio", "transformers", "peft", "speechbrain", "librosa", "sklearn", "scipy", "matplotlib")


def in_a_fresh_process(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    "code",
    [
        "import speech_adapters",
        "from speech_adapters.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit:\n    pass",
        "from speech_adapters.cli import main\ntry:\n    main(['prepare', '--help'])\nexcept SystemExit:\n    pass",
    ],
)
def test_a_first_look_imports_nothing_slow(code: str) -> None:
    shown = in_a_fresh_process(f"import sys\n{code}\nprint('imported:', *sorted(set({SLOW}) & sys.modules.keys()))")
    assert shown.splitlines()[-1].split() == ["imported:"]


def test_optional_packages_are_imported_only_where_they_are_used() -> None:
    code = """
import importlib, pkgutil, sys
optional = ["torchaudio", "speechbrain", "librosa", "bitsandbytes", "flashlight", "jiwer", "pyarrow"]
sys.modules |= dict.fromkeys(optional)
import torch
import speech_adapters
for module in pkgutil.walk_packages(speech_adapters.__path__, "speech_adapters."):
    importlib.import_module(module.name)
print("torch._dynamo" in sys.modules)
model = speech_adapters.SpeechAdapterModel.from_pretrained("tiny-wavlm")
model.add_adapter("a", "elp")
model.eval()
print(model(torch.randn(1, 8000)).features.shape[-1])
"""
    assert in_a_fresh_process(code).split() == ["False", "512"], "the compiler takes as long to import as torch"


def reads_that_run_code(text: str) -> list[int]:
    """Lines of Python code that read a file in a way that may run code from it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            safe = {
                "torch.load": options.get("weights_only") == "True",
                "np.load": options.get("allow_pickle", "False") == "False",
                "tar.extractall": options.get("filter") == "'data'",
            }
            known = name in ("eval", "exec", "yaml.load", "pickle.load", "pickle.loads", "joblib.load")
            if known or not safe.get(name, True) or options.get("trust_remote_code", "False") != "False":
                found.append(node.lineno)
    return found


def test_reading_a_file_runs_nothing_of_it() -> None:
    files = [path for folder in ("speech_adapters", "recipes") for path in (ROOT / folder).rglob("*.py")]
    found = {str(path): lines for path in files if (lines := reads_that_run_code(path.read_text(encoding="utf-8")))}
    assert not found
    for code in (
        "torch.load(p)",
        "np.load(p, allow_pickle=True)",
        "pickle.load(f)",
        "AutoModel.from_pretrained(p, trust_remote_code=x)",
    ):
        assert reads_that_run_code(code) == [1]
