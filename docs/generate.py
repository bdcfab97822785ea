"""Write docs/methods.md and a page per method, docs/command_line.md, docs/checkpoints.md and docs/openapi.json from
the code: docstrings, settings, presets, sizes, the support table, the verbs and their arguments, the checkpoints
that are tested.

make docs                   # or: python docs/generate.py
python docs/generate.py --check    # exit code 1 when a committed page is not what the code says
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import sys
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from matrix import PROMISES, REFUSED  # noqa: E402
from public_checkpoints import CHECKPOINTS, PublicCheckpoint  # noqa: E402
from small_encoders import FAMILIES, OTHERS, STYLES  # noqa: E402
from small_models import METHODS as ROWS  # noqa: E402
from small_models import counts, meta_model  # noqa: E402

from speech_adapters import cli  # noqa: E402
from speech_adapters.adapters import ADAPTER_METHODS, ALIASES, PRESETS, AdapterConfig, Combine, preset  # noqa: E402
from speech_adapters.cli import verbs  # noqa: E402
from speech_adapters.cli.recipes import summary  # noqa: E402
from speech_adapters.files import write_text  # noqa: E402
from speech_adapters.flags import DEVICE, SHORT, Parser, field_helps  # noqa: E402

GENERATED = "<!-- Written by docs/generate.py from the code; change that, then run `make docs`. -->"


def pages() -> dict[str, str]:
    """Path below docs -> text."""
    sizes = _sizes()
    texts = {f"methods/{_page(config)}": _method(config, sizes) for config in ADAPTER_METHODS.values()}
    return {"methods.md": _index(sizes), "command_line.md": _command_line(), "checkpoints.md": _checkpoints(), **texts}


def _checkpoints() -> str:
    names = list(dict.fromkeys(checkpoint.name for checkpoint in CHECKPOINTS))
    lines = [
        GENERATED,
        "# Checkpoints",
        "",
        "`load_encoder` takes a packaged name, a folder or a hub id. `tests/public_checkpoints.py` builds these "
        f"{len(names)} public checkpoints as they are published: their `config.json` (sizes made small), names and "
        "kinds of their weights (random here), preprocessor and tokenizer files. The hub itself was not asked: the "
        "settings are those that `transformers`, its documentation and code that uses these models give. "
        "`tests/test_public_checkpoints.py` checks each of them:",
        "",
        "- it loads, and what it computes is what `transformers` computes;",
        "- LoRA and bottleneck adapters learn on it, are saved, and give the same output to the bit in a new process;",
        "- utterances give the same alone and in a padded batch, unless its CNN normalises over time (group norm);",
        "- waveforms are prepared as its files say;",
        "- a CTC head gives `transformers`' logits, and texts in its own symbols (`use_own_ctc_head`).",
        "",
        "| checkpoint | class | weights | symbols | peculiar |",
        "|---|---|---|---|---|",
        *map(_checkpoint, CHECKPOINTS),
        "",
        "Beside these: safetensors and `pytorch_model.bin`, whole and in shards; weight norm under both its names; "
        "`added_tokens.json`, `added_tokens_decoder`, `special_tokens_map.json`; `processor_config.json` in place of "
        "`preprocessor_config.json`; output adapters (`add_adapter`), which run as a part of the frozen base. A hub "
        "cache that holds a part of a repository completes itself, and says offline what it lacks "
        "(`tests/test_hub.py`). Pickled code is never run. A `peft` adapter that lies beside the weights is left out, "
        "as a fetch from the hub leaves it out (`transformers` adds it by itself), and what `config.json` says of "
        "attention kernels is passed over. A `config.json` that builds an encoder without some of the tensors that "
        "the weights have for it is refused (`transformers` leaves them out), and so is an adapter on weights that "
        "are its own under a `config.json` with which they compute something else.",
        "",
        "Where stock `transformers` lets padding change what an utterance gives (batch norm before HuBERT's "
        "positional convolution, data2vec's stack of them, output adapters), it does not here: padded batches equal "
        "each utterance alone, which equals `transformers`.",
        "",
        "<!-- not run: asks the hub; tests/test_public_checkpoints.py builds this checkpoint -->",
        "```python",
        "from speech_adapters import SpeechAdapterModel",
        "",
        'model = SpeechAdapterModel.from_pretrained("facebook/mms-1b-all", target_lang="fra")',
        'model = SpeechAdapterModel.from_pretrained("facebook/mms-1b-all@main:fra")  # the same in one word',
        "```",
        "",
        "Recipes, the command line and the server take that word wherever they take an encoder: "
        "`--encoder facebook/mms-1b-all:fra`, `--encoder microsoft/wavlm-base-plus@<commit>`.",
    ]
    return "\n".join(lines) + "\n"


def _checkpoint(checkpoint: PublicCheckpoint) -> str:
    weights = f"`{checkpoint.weights}`{', `weight_g`, `weight_v`' if checkpoint.weight_norm else ''}"
    symbols = checkpoint.files.get("vocab.json", {})
    nested = any(isinstance(value, dict) for value in symbols.values())
    said = "one set per language" if nested else f"{len(symbols)}" if symbols else ""
    return f"| `{checkpoint.name}` | `{checkpoint.architecture}` | {weights} | {said} | {checkpoint.special} |"


def documents() -> dict[str, str]:
    """All that is written: the pages, and the server's OpenAPI document."""
    from speech_adapters.serving.http.app import openapi

    return {**pages(), "openapi.json": json.dumps(openapi(), indent=2, ensure_ascii=False) + "\n"}


def _page(config: type[AdapterConfig]) -> str:
    return f"{config.method.replace('_', '-')}.md"


def _sizes() -> dict[str, tuple[int, int, float]]:
    """Trainable parameters on a Base and a Large encoder, and the percentage on Base, by preset."""
    base, large = meta_model("wavlm", "post-norm", 12, 768), meta_model("wavlm", "pre-norm", 24, 1024)
    sizes = {}
    for name in PRESETS:
        on_base = counts(base, name)
        sizes[name] = int(on_base["trainable"]), int(counts(large, name)["trainable"]), on_base["percent"]
    return sizes


def _method(config: type[AdapterConfig], sizes: dict) -> str:
    module = inspect.getmodule(config)
    shared = sum(inspect.getmodule(other) is module for other in ADAPTER_METHODS.values()) > 1
    own = inspect.getdoc(config) if shared else None
    lines = [GENERATED, f"# {config.__name__}", ""]
    lines += [_markdown(own), ""] if own else []
    lines += [_markdown(inspect.getdoc(module)), "", "## Settings", "", "| setting | default | |", "|---|---|---|"]
    helps = field_helps(config)
    for field in dataclasses.fields(config):
        lines.append(f"| `{field.name}` | `{_default(field)}` | {_cell(helps.get(field.name, ''))} |")
    names = [name for name in PRESETS if _uses(preset(name), config)]
    if names:
        lines += ["", "## Presets", "", *_table(names, sizes, folder="")]
    call = f'"{names[0]}"' if names else f"{config.__name__}()"
    needed = [] if call.startswith('"') else [f"from speech_adapters import {call.partition('(')[0]}", ""]
    lines += [
        "",
        "```python",
        *needed,
        f'model.add_adapter("mine", {call})',
        "```",
        "",
        "[All methods](../methods.md)",
    ]
    return "\n".join(lines) + "\n"


#: What a method changes -> presets: what one chooses between before one looks at sizes.
CHOICES = {
    "paths from every layer to the head (`l` also the LayerNorms)": ("l", "l-frozen", "weighted-sum"),
    "bottlenecks in the layers, also several fused": ("houlsby", "pfeiffer", "parallel", "e", "compacter"),
    "bottlenecks and paths": ("el", "elp"),
    "updates of the projections, which fold into the base": (
        "lora",
        "dora",
        "rslora",
        "pissa",
        "adalora",
        "vera",
        "ia3",
    ),
    "learnt frames, keys and values": ("prefix", "prompt", "deep-prompts", "ipet"),
    "convolutions, in the layers or in the CNN": ("conv-adapter", "cnn-adapter", "chapter"),
    "the few numbers that are there already": ("bitfit", "layer-norms", "adapter-bias"),
    "baselines": ("head-only", "last-2", "full", "gradual", "hybrid"),
}


def _index(sizes: dict) -> str:
    cells = len(ROWS) * len(PROMISES)
    lines = [
        GENERATED,
        "# Methods",
        "",
        "Which to take for what, by what was measured: [which method when](choosing.md). By what they change:",
        "",
        "| what learns | presets | % of a Base encoder |",
        "|---|---|---|",
        *(
            f"| {what} | {', '.join(f'`{name}`' for name in names)} | {_span(names, sizes)} |"
            for what, names in CHOICES.items()
        ),
        "",
        'Methods that act in the layers take `layers=`: indices, `"top-4"`, or `"every-2"`. '
        "`model.set_active(name, skip_layers=4)` leaves the adapters of the lowest layers out at run time. Presets "
        "joined by `+` are one adapter: `lora+l`.",
        "",
        "## All presets",
        "",
        "The parameters that each trains on a Base (12 x 768) and a Large (24 x 1024) encoder, its share of a Base "
        "WavLM, and the page of its method.",
        "",
        *_folded(f"{len(PRESETS)} presets", _table(list(PRESETS), sizes, folder="methods/")),
        "",
        "Names that carry the paper: " + ", ".join(f"`{alias}` is `{name}`" for alias, name in ALIASES.items()) + ".",
        "",
        "## What is tested",
        "",
        f"{len(ROWS)} rows x {len(PROMISES)} promises, each on {', '.join(FAMILIES)} in {' and '.join(STYLES)} "
        f"layers, and on {' and '.join(family for family, _ in OTHERS)}: "
        f"{cells * (len(FAMILIES) * len(STYLES) + len(OTHERS)):,} tests (`pytest tests/test_matrix.py`). "
        f"Refused with a reason: {', '.join(f'`{method}` on {family}' for family, method in REFUSED)}. "
        "Everything else is a yes.",
        "",
        *_folded(
            "The promises", [f"- **{name}**: {_markdown(inspect.getdoc(check))}" for name, check in PROMISES.items()]
        ),
        "",
        *_folded("Every method on every family", _support()),
    ]
    return "\n".join(lines) + "\n"


def _span(names: tuple[str, ...], sizes: dict) -> str:
    shares = sorted(sizes[name][2] for name in names)
    return " to ".join(dict.fromkeys(f"{share:.2f}" for share in (shares[0], shares[-1])))


def _support() -> list[str]:
    families = [*FAMILIES, *(family for family, _ in OTHERS)]
    lines = [f"| row | {' | '.join(families)} |", f"|---|{'---|' * len(families)}"]
    for name in ROWS:
        cells = ("no" if (family, name) in REFUSED else "yes" for family in families)
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return lines


def _folded(summary: str, lines: list[str]) -> list[str]:
    """Lines that open with a click, here and on code hosts."""
    return ['<details markdown="1">', f"<summary>{summary}</summary>", "", *lines, "", "</details>"]


def _command_line() -> str:
    shorts = [f"| `--{name.replace('_', '-')}` | `{' or '.join(keys)}` |" for name, keys in SHORT.items()]
    lines = [
        GENERATED,
        "# The command line",
        "",
        "`speech-adapters VERB --help` says what stands here. Exit codes: 0 done, 2 bad input (in a sentence on "
        "standard error), 130 and 143 interrupted by Ctrl-C and SIGTERM. An unknown verb, flag or key is told the "
        "near one.",
        "",
        *_verbs(cli, "speech-adapters", "##"),
        "## Values of trainings",
        "",
        "`train`, `fuse` and the recipes have a flag for each top-level value, and `key=value` for all others, such "
        "as `training.updates=500`; `train asr --help` lists every key with its default. What everyone sets is short; "
        "a flag and its key together are an error:",
        "",
        "| flag | key |",
        "|---|---|",
        *shorts,
        f"| `--device` | {DEVICE} |",
        "| `--resume` | `latest`, or a run folder: go on with that run |",
    ]
    return "\n".join(lines) + "\n"


def _verbs(group: object, prog: str, level: str) -> list[str]:
    """A section per verb of a group, one level deeper for the verbs in it."""
    lines = []
    for name in verbs.names_in(group):
        verb, called = import_module(verbs.module_of(group.__name__, name)), f"{prog} {name}"
        first, _, rest = inspect.getdoc(verb).partition("\n")
        lines += [f"{level} {called}", "", first, ""]
        if rest.strip():
            lines += ["```text", rest.strip("\n"), "```", ""]
        if hasattr(verb, "VERBS"):
            lines += _verbs(verb, called, level + "#")
        if hasattr(verb, "RECIPES"):
            rows = [f"| `{key}` | {_cell(summary(recipe))} |" for key, recipe in verb.RECIPES.items()]
            lines += ["| name | |", "|---|---|", *rows, ""]
        if hasattr(verb, "add_arguments"):
            lines += _arguments(verb)
    return lines


def _arguments(verb: object) -> list[str]:
    parser = Parser("verb")
    verb.add_arguments(parser)
    rows = []
    for action in parser._actions:
        if "--help" not in action.option_strings:
            choices = f"; one of {', '.join(map(str, action.choices))}" if action.choices else ""
            name = ", ".join(f"`{flag}`" for flag in action.option_strings) or f"`{action.metavar or action.dest}`"
            rows.append(f"| {name} | {_cell((action.help or '') + choices).removeprefix('; ')} |")
    return ["| argument | |", "|---|---|", *rows, ""] if rows else []


def _table(names: list[str], sizes: dict, folder: str) -> list[str]:
    lines = ["| preset | method | Base | Large | % of Base |", "|---|---|---|---|---|"]
    for name in names:
        base, large, percent = sizes[name]
        config = preset(name)
        parts = config.parts if isinstance(config, Combine) else (config,)
        methods = " + ".join(f"[{type(part).__name__}]({folder}{_page(type(part))})" for part in parts)
        lines.append(f"| `{name}` | {methods} | {base:,} | {large:,} | {percent:.2f} |")
    return lines


def _uses(config: AdapterConfig, wanted: type[AdapterConfig]) -> bool:
    parts = config.parts if isinstance(config, Combine) else ()
    return type(config) is wanted or any(type(part) is wanted for part in parts)


def _default(field: dataclasses.Field) -> str:
    return repr(field.default) if field.default is not dataclasses.MISSING else repr(field.default_factory())


def _cell(text: str) -> str:
    return _markdown(text).replace("|", "\\|")


def _markdown(text: str) -> str:
    """A docstring's roles and double backticks as Markdown's backticks."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return re.sub(r"``(.+?)``", r"`\1`", text, flags=re.S)


def main() -> int:
    """Write the pages, or with ``--check`` say which are stale; the exit status."""
    stale = []
    for name, text in documents().items():
        path = ROOT / "docs" / name
        if "--check" not in sys.argv:
            write_text(path, text)
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(f"docs/{name}")
    if stale:
        print(f"not what the code says: {', '.join(stale)}; run `make docs` and commit what it writes.")
    return 1 if stale else 0


if __name__ == "__main__":
    raise SystemExit(main())
