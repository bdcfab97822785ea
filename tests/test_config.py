"""Configurations: round trips, types, overrides, command lines, and one clear message for each kind of bad input."""

from __future__ import annotations

import enum
import errno
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from speech_adapters.config import (
    from_dict,
    load_config,
    option,
    parse_cli,
    run_main,
    save_config,
    to_dict,
    to_yaml,
)
from speech_adapters.data.manifest import Manifest
from speech_adapters.errors import ConfigError, InputError, Interrupted
from speech_adapters.locks import hold, release
from speech_adapters.runs.folder import RunFolder


class Schedule(enum.Enum):
    COSINE = "cosine"
    LINEAR = "linear"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


@dataclass(kw_only=True)
class LoRA:
    method: Literal["lora"] = "lora"
    rank: int = 8


@dataclass(kw_only=True)
class Bottleneck:
    method: Literal["bottleneck"] = "bottleneck"
    size: int = 64
    scale: float | None = None


@dataclass(kw_only=True)
class Training:
    learning_rate: float = 1e-4
    """Peak rate;
    halve it when the loss jumps."""
    epochs: int = option(10, "passes over the data (100 % of it)")
    schedule: Schedule = Schedule.COSINE

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate={self.learning_rate} must be above 0")


@dataclass(kw_only=True)
class Recipe:
    """Uses everything a configuration may hold."""

    encoder: str = "tiny-wavlm"
    """A packaged encoder, a hub id or a folder."""
    seed: int = 0
    rate: float = 1.0
    fp16: bool = False
    data: Path | None = None
    precision: Literal["fp32", "bf16"] = "fp32"
    level: Level = Level.LOW
    layers: tuple[int, ...] = (1, 2)
    band: tuple[float, float] = (300.0, 3400.0)
    words: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    budget: int | float | str = 1
    training: Training = option(Training(epochs=3), "how it is trained")
    adapter: LoRA | Bottleneck = field(default_factory=LoRA)


@dataclass(kw_only=True)
class Needs:
    manifest: Path


text = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
finite = st.floats(allow_nan=False)
paths = st.from_regex(r"[a-z0-9 .]{1,8}(/[a-z0-9]{1,8})?", fullmatch=True).map(Path)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)
trainings = st.builds(
    Training,
    learning_rate=st.floats(min_value=0, exclude_min=True, allow_nan=False),
    epochs=st.integers(),
    schedule=st.sampled_from(Schedule),
)
recipes = st.builds(
    Recipe,
    encoder=text
    | st.sampled_from(["no", "1e-4", "null", "012", "1:30", "2020-01-01", "~", "0x1f", "<<", "- a", "a: b"]),
    seed=st.integers(),
    rate=finite,
    fp16=st.booleans(),
    data=st.none() | paths,
    precision=st.sampled_from(["fp32", "bf16"]),
    level=st.sampled_from(Level),
    layers=st.lists(st.integers(), max_size=4).map(tuple),
    band=st.tuples(finite, finite),
    words=st.lists(text, max_size=3),
    extra=st.dictionaries(text, plain, max_size=3),
    budget=st.integers() | finite | text,
    training=trainings,
    adapter=st.builds(LoRA, rank=st.integers()) | st.builds(Bottleneck, size=st.integers(), scale=st.none() | finite),
)


@settings(deadline=None, max_examples=200)
@given(recipes)
def test_a_saved_config_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Recipe) -> None:
    file = tmp_path_factory.getbasetemp() / "config.yaml"
    save_config(config, file)
    loaded = load_config(Recipe, file)
    assert loaded == config
    assert type(loaded.budget) is type(config.budget)
    assert from_dict(Recipe, to_dict(config)) == config


def test_defaults_are_not_shared_between_configs() -> None:
    load_config(Recipe).training.epochs = 99
    assert load_config(Recipe).training.epochs == 3


def test_nested_mapping_keeps_what_the_enclosing_default_says(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training:\n  learning_rate: 3e-4\n")
    config = load_config(Recipe, tmp_path / "a.yaml", ["training.schedule=linear"])
    assert config.training == Training(learning_rate=3e-4, epochs=3, schedule=Schedule.LINEAR)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("rate=1e-4", {"rate": 1e-4}),
        ("rate=2", {"rate": 2.0}),
        ("encoder=no", {"encoder": "no"}),
        ("encoder=1e-4", {"encoder": "1e-4"}),
        ("encoder=a=b", {"encoder": "a=b"}),
        ("encoder=", {"encoder": ""}),
        ("fp16=yes", {"fp16": True}),
        ("data=null", {"data": None}),
        ("data=~/corpus", {"data": Path.home() / "corpus"}),
        ("level=HIGH", {"level": Level.HIGH}),
        ("level=2", {"level": Level.HIGH}),
        ("layers=3,6, 9", {"layers": (3, 6, 9)}),
        ("layers=[3, 6]", {"layers": (3, 6)}),
        ("layers=", {"layers": ()}),
        ("band=300,3.4e3", {"band": (300.0, 3400.0)}),
        ("words=yes,no", {"words": ["yes", "no"]}),
        ("extra.a.b=1e-4", {"extra": {"a": {"b": 1e-4}}}),
        ("extra={a: [1, x]}", {"extra": {"a": [1, "x"]}}),
        ("budget=5", {"budget": 5}),
        ("budget=0.5", {"budget": 0.5}),
        ("budget=10h", {"budget": "10h"}),
        ("adapter.rank=4", {"adapter": LoRA(rank=4)}),
        ("adapter.size=4", {"adapter": Bottleneck(size=4)}),
        ("adapter.method=bottleneck", {"adapter": Bottleneck()}),
        ("adapter={method: bottleneck, scale: 2}", {"adapter": Bottleneck(scale=2.0)}),
    ],
)
def test_override_takes_the_type_of_its_field(override: str, expected: dict[str, Any]) -> None:
    config = load_config(Recipe, overrides=[override])
    assert config == Recipe(**expected)
    assert all(type(getattr(config, key)) is type(value) for key, value in expected.items())


def test_later_overrides_win_and_merge() -> None:
    config = load_config(Recipe, overrides=["seed=1", "training.epochs=5", "seed=2", "training.learning_rate=1"])
    assert (config.seed, config.training.epochs, config.training.learning_rate) == (2, 5, 1.0)


def test_override_of_an_alias_leaves_its_anchor_alone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extra:\n  a: &a {x: 1}\n  b: *a\n")
    assert load_config(Recipe, tmp_path / "a.yaml", ["extra.b.x=2"]).extra == {"a": {"x": 1}, "b": {"x": 2}}


@pytest.mark.parametrize(
    ("content", "overrides", "parts"),
    [
        ("trainning: {}\n", [], ["a.yaml", "'trainning'", "did you mean 'training'?", "encoder, seed"]),
        ("training:\n  learning_rte: 1\n", [], ["a.yaml", "training", "'learning_rte'", "'learning_rate'", "epochs"]),
        ("training:\n  epochs: many\n", [], ["a.yaml", "training.epochs", "an integer", "'many'"]),
        ("seed: 1.5\n", [], ["seed", "an integer", "1.5"]),
        ("seed: true\n", [], ["seed", "an integer", "True"]),
        ("rate: fast\n", [], ["rate", "a number", "'fast'"]),
        ("encoder: 5\n", [], ["encoder", "text", "5"]),
        ("fp16: 1\n", [], ["fp16", "true or false", "1"]),
        ("data: 3\n", [], ["data", "a path or null", "3"]),
        ("precision: fp8\n", [], ["precision", "one of fp32, bf16", "'fp8'"]),
        ("level: MIDDLE\n", [], ["level", "one of LOW, HIGH", "'MIDDLE'"]),
        ("layers: 3\n", [], ["layers", "a list (an integer)", "3"]),
        ("layers: [1, x]\n", [], ["layers.1", "an integer", "'x'"]),
        ("band: [1.0]\n", [], ["band", "2 values", "[1.0]"]),
        ("training: 5\n", [], ["training", "keys of Training", "learning_rate", "5"]),
        ("training: {learning_rate: -1}\n", [], ["a.yaml", "training", "must be above 0"]),
        ("adapter: {method: lora, rank: x}\n", [], ["adapter.rank", "an integer", "'x'"]),
        ("- a\n- b\n", [], ["a.yaml", "key: value", "list"]),
        ("seed: 1\nrate: 2\nseed: 3\n", [], ["a.yaml:3", "'seed'", "line 1"]),
        ("training:\n  epochs: 1\n  epochs: 2\n", [], ["a.yaml:3", "'epochs'", "line 2"]),
        ("seed: [1\n", [], ["a.yaml:2", "not valid YAML"]),
        ("seed: \x00\n", [], ["a.yaml", "not valid YAML"]),
        ("", ["sed=1"], ["argument 'sed=1'", "'seed'"]),
        ("", ["training.epoch=1"], ["argument 'training.epoch=1'", "training", "'epochs'"]),
        ("", ["training.epochs=1.5"], ["argument 'training.epochs=1.5'", "training.epochs", "an integer", "'1.5'"]),
        ("", ["seed.x=1"], ["argument 'seed.x=1'", "seed", "'x'"]),
        ("", ["seed"], ["argument 'seed'", "key=value", "for example training.learning_rate=0.0001"]),
        ("", ["layers=[1"], ["argument 'layers=[1'", "not valid YAML"]),
        ("", ["layers=1,"], ["argument 'layers=1,'", "a value is missing beside a comma", "write a,b"]),
    ],
)
def test_bad_config_names_place_key_and_remedy(
    tmp_path: Path, content: str, overrides: list[str], parts: list[str]
) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        load_config(Recipe, tmp_path / "a.yaml", overrides)
    for part in parts:
        assert part in str(caught.value)


@dataclass(kw_only=True)
class Checked:
    updates: int = 3

    def __post_init__(self) -> None:
        if self.updates < 1:
            raise ConfigError(f"training.updates={self.updates}: must be at least 1.")


@dataclass(kw_only=True)
class Outer:
    training: Checked = field(default_factory=Checked)


def test_a_value_from_the_command_line_is_not_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("training: {updates: 0}")
    with pytest.raises(ConfigError, match="a.yaml: .*updates=0"):
        load_config(Outer, tmp_path / "a.yaml")
    with pytest.raises(ConfigError, match=r"^training.updates=-5: must"):
        load_config(Outer, tmp_path / "a.yaml", ["training.updates=-5"])


@dataclass(kw_only=True)
class Both:
    seed: int = 0
    train: str | None = None
    trials: str | None = None

    def __post_init__(self) -> None:
        if (self.train is None) != (self.trials is None):
            raise ConfigError("give --train and --trials together.")


def test_what_only_the_command_line_makes_wrong_is_not_the_files_fault(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("seed: 1")
    with pytest.raises(ConfigError, match="^give --train and --trials together.$"):
        load_config(Both, tmp_path / "a.yaml", ["train=a.jsonl"])
    (tmp_path / "a.yaml").write_text("train: a.jsonl")
    with pytest.raises(ConfigError, match="a.yaml: give --train and --trials together.$"):
        load_config(Both, tmp_path / "a.yaml", ["seed=2"])


def test_missing_file_folder_binary_and_required_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none.yaml: no such configuration file"):
        load_config(Recipe, tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Recipe, tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="b.yaml: "):
        load_config(Recipe, tmp_path / "b.yaml")
    with pytest.raises(ConfigError, match="missing key 'manifest' .a path."):
        load_config(Needs)
    assert load_config(Needs, overrides=["manifest=a.jsonl"]).manifest == Path("a.jsonl")


def test_saving_leaves_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    save_config(Recipe(), tmp_path / "c.yaml")
    with pytest.raises(Exception, match="represent"):
        save_config(Recipe(extra={"x": object()}), tmp_path / "c.yaml")
    assert [path.name for path in tmp_path.iterdir()] == ["c.yaml"]
    assert load_config(Recipe, tmp_path / "c.yaml") == Recipe()


def test_command_line_order_is_source_then_overrides_then_flags(tmp_path: Path) -> None:
    (tmp_path / "demo.yaml").write_text("seed: 1\nrate: 2\ntraining: {epochs: 7}\n")
    arguments = ["rate=4", "--preset", "demo", "--seed", "3", "--layers", "1,2", "training.learning_rate=1", "--fp16"]
    config = parse_cli(Recipe, arguments, presets={"demo": tmp_path / "demo.yaml"})
    assert config == Recipe(seed=3, rate=4, layers=(1, 2), fp16=True, training=Training(epochs=7, learning_rate=1))
    assert parse_cli(Recipe, ["--config", str(tmp_path / "demo.yaml")]).training.epochs == 7
    assert parse_cli(Recipe, ["--no-fp16", "--rate=-1e-3"]) == Recipe(rate=-1e-3)


@dataclass(kw_only=True)
class Resumable(Recipe):
    output: str | None = None
    resume: str | None = None


def test_resume_takes_the_runs_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the preset of a bare call: what was given when the run was begun need not be given again."""
    monkeypatch.chdir(tmp_path)
    demo = {"demo": tmp_path / "demo.yaml"}
    demo["demo"].write_text("seed: 1\n")
    begun = Resumable(seed=5, output="mine", training=Training(epochs=9))
    (tmp_path / "mine").mkdir()
    save_config(begun, tmp_path / "mine" / "config.yaml")
    (tmp_path / "runs" / "asr").mkdir(parents=True)
    (tmp_path / "runs" / "asr" / "latest").symlink_to(tmp_path / "mine")
    for named in (["--resume", "latest"], ["--resume", "mine"], ["resume=latest"]):
        config = parse_cli(Resumable, [*named, "training.learning_rate=1"], presets=demo, recipe="asr")
        assert (config.seed, config.training, config.output) == (5, Training(epochs=9, learning_rate=1), None)
    assert parse_cli(Resumable, ["--resume", "mine", "--preset", "demo"], presets=demo, recipe="asr").seed == 1
    assert parse_cli(Resumable, ["resume=null"], presets=demo, recipe="asr").seed == 1
    with pytest.raises(InputError, match=r"nix: no run to resume; see what lies in runs/asr, or omit --resume"):
        parse_cli(Resumable, ["--resume", "nix"], presets=demo, recipe="asr")


@dataclass(kw_only=True)
class Reading(Resumable):
    dev_set: Path | None = option(None, file=True)
    test_set: Path | None = option(None, file=True)


def test_files_that_do_not_exist_are_found_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "dev.jsonl").touch()
    run = ["--resume", "mine"]
    with pytest.raises(ConfigError, match=r"^a, b: no such file; check --dev-set, --test-set$"):
        parse_cli(Reading, ["--dev-set=a", "--test-set=b"])
    (tmp_path / "mine").mkdir()
    save_config(Reading(dev_set=Path("dev.jsonl"), test_set=Path("sub/b")), tmp_path / "mine" / "config.yaml")
    with pytest.raises(ConfigError, match=r"^sub/b: no such file; if .* elsewhere now, name them with --test-set$"):
        parse_cli(Reading, run, recipe="asr")
    config = parse_cli(Reading, [*run, "--test-set=dev.jsonl"], recipe="asr")
    assert config.test_set == config.dev_set == Path("dev.jsonl")
    with pytest.raises(SystemExit, match="0"):
        parse_cli(Reading, [*run, "--print-config"], recipe="asr")


def test_print_config_is_a_config_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_cli(Recipe, ["--seed", "5", "training.epochs=2", "--print-config"])
    assert stop.value.code == 0
    (tmp_path / "c.yaml").write_text(capsys.readouterr().out)
    assert load_config(Recipe, tmp_path / "c.yaml") == load_config(Recipe, overrides=["seed=5", "training.epochs=2"])


def test_help_comes_from_docstrings_and_options(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        parse_cli(Recipe, ["--help"], description="Trains.")
    shown = " ".join(capsys.readouterr().out.split())
    assert "Trains." in shown and "A packaged encoder, a hub id or a folder. (default: tiny-wavlm)" in shown
    with pytest.raises(SystemExit):
        parse_cli(Training, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "Peak rate; halve it when the loss jumps. (default: 0.0001)" in shown and "(100 % of it)" in shown


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--sed", "3"], "unknown argument '--sed'; did you mean '--seed'?"),
        (["--preset", "dmo"], "'dmo'"),
        (["--preset", "small", "--config", "x.yaml"], "not allowed with"),
        (["--seed", "x"], "argument 'seed=x': seed: expected an integer, got 'x'"),
    ],
)
def test_bad_command_line_is_a_config_error(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_cli(Recipe, argv, presets={"small": Path("small.yaml")})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "out of memory; what takes most"),
        (
            RuntimeError("CPU: can't allocate memory: you tried to allocate 470 bytes. Error"),
            "(470 bytes",
        ),
        (
            RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"),
            "(2.50 GiB asked for); what",
        ),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory; what takes most"),
        (RuntimeError("unable to mmap 8 bytes: Cannot allocate memory (12)"), "out of memory; what takes most"),
    ],
)
def test_running_out_of_memory_is_a_sentence(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_a_relative_path_that_is_missing_is_told_with_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for manifest in ("data/train.jsonl", tmp_path / "train.jsonl"):
        with pytest.raises(SystemExit):
            run_main(lambda manifest=manifest: Manifest.read(manifest))  # type: ignore[misc]
        said = capsys.readouterr().err
        assert said.startswith(f"error: {manifest}: the manifest cannot be read (No such file or directory)")
        assert (f"looked for in {tmp_path}" in said) is (manifest == "data/train.jsonl")


def test_other_errors_keep_their_traceback() -> None:
    def main() -> None:
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        run_main(main)


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (3, 3), (InputError("a: b"), 2), (KeyboardInterrupt(), 130)])
def test_run_main_exit_codes(outcome: object, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> object:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    with pytest.raises(SystemExit) as stop:
        run_main(main)
    assert stop.value.code == code
    assert capsys.readouterr().err == {2: "error: a: b\n", 130: "interrupted\n"}.get(code, "")


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt(), 130), (Interrupted("", 143), 143)])
def test_a_run_stopped_while_nothing_trains_is_told_how_to_go_on(
    stop: BaseException, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        hold(run.path)
        raise stop

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py", "--updates", "5"])
    run = RunFolder.open("asr", Recipe())
    for told in ("", f"go on with: python train.py --updates 5 --output {run.path}\n"):
        release(run.path)
        with run, pytest.raises(SystemExit) as end:
            run_main(main)
        assert (end.value.code, capsys.readouterr().err) == (code, f"interrupted\n{told}")
        run.checkpoint("elp").parent.mkdir(exist_ok=True)


def test_a_script_with_bad_input_prints_one_line_and_exits_2() -> None:
    script = (
        "from dataclasses import dataclass\n"
        "from speech_adapters.config import parse_cli, run_main\n"
        "@dataclass(kw_only=True)\nclass R:\n    seed: int = 0\n"
        "run_main(lambda: print(parse_cli(R)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, "--seed", "x"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: argument 'seed=x': seed: expected an integer, got 'x'\n"


def test_yaml_is_readable() -> None:
    shown = to_yaml(Recipe(layers=(), words=["é"]))
    assert "encoder: tiny-wavlm\n" in shown and "- é" in shown and "!!" not in shown


def test_a_closed_pipe_and_a_full_disk_end_in_a_sentence(tmp_path: Path):
    script = "from speech_adapters.config import run_main\n"
    closed = subprocess.run(
        ["bash", "-c", f"{sys.executable} -c '{script}run_main(lambda: [print(i) for i in range(10**5)])' | head -1"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert (closed.stdout, closed.stderr) == ("0\n", "")
    full = (
        script
        + "import errno\ndef main(): raise OSError(errno.ENOSPC, 'No space left on device', 'a.pt')\nrun_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True)
    assert (
        done.returncode == 2
        and done.stderr == "error: a.pt: No space left on device; free space, or name a folder that you may write to\n"
    )


@pytest.mark.parametrize("given", [["-o", "mine"], ["-omine"], ["--output=mine"], ["output=mine"], ["resume=latest"]])
def test_the_command_that_goes_on_names_one_folder(
    given: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> None:
        raise Interrupted("", 130, "mine/rounds/0001")

    monkeypatch.setattr(sys, "argv", ["sweep.py", *given])
    with pytest.raises(SystemExit):
        run_main(main)
    assert capsys.readouterr().err.endswith(f"go on with: python sweep.py {' '.join(given)}\n")
