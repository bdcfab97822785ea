"""Compress LoRA adapters together: bases that they share, and a small core each; what was lost is measured.

  speech-adapters bank compress --bank drawer --task asr --target-error 0.05 --manifest test.jsonl

Each becomes the next version of its name, tagged compressed; the one that it was made of stays. Only LoRA adapters of
one base on the same projections are compressed together; ranks may differ.
"""

from __future__ import annotations

import argparse

from speech_adapters.cli.bank.arguments import add_bank, add_query, open_bank, query_of, say_damaged


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which, and how far."""
    add_query(parser)
    parser.add_argument(
        "--target-error", type=float, default=0.05, help="the most that any may lose of its norm (default: 0.05)"
    )
    parser.add_argument(
        "--manifest", help="recordings to measure on: how far features move, and WER where it has texts"
    )
    parser.add_argument(
        "--utterances", type=int, default=20, help="how many of the manifest to use, from its start (default: 20)"
    )
    parser.add_argument("--encoder", help="the base, if it cannot be found here by its name")
    add_bank(parser)


def run(arguments: argparse.Namespace) -> None:
    """A line per adapter, and the sum."""
    from speech_adapters.bank.compression import compress, lost_features, word_errors
    from speech_adapters.data.manifest import Manifest
    from speech_adapters.errors import ConfigError, counted
    from speech_adapters.model import SpeechAdapterModel

    bank = open_bank(arguments)
    index, query = bank.index(), query_of(arguments)
    say_damaged(index.damaged, "left out")
    fitting = (found for found in index.versions(every=arguments.every) if query.fits(found))
    chosen = [found for found in fitting if found.facts.method == "lora"]
    if not chosen:
        raise ConfigError("no LoRA adapters are chosen; see what there is: speech-adapters bank list.")
    utterances = list(Manifest.read(arguments.manifest))[: arguments.utterances] if arguments.manifest else []
    waveforms, texts = [one.waveform() for one in utterances], [one.text for one in utterances if one.text is not None]
    model = SpeechAdapterModel.from_pretrained(arguments.encoder or chosen[0].facts.base)
    bases = {found.facts.fingerprint for found in chosen}  # of one base there are two where some were saved long ago
    if len(bases) > 1 and not bases <= {*model.encoder.fingerprints}:
        raise ConfigError("choose LoRA adapters of one base: give --base, --name, --task, ...")
    done = compress(bank, chosen, model.encoder, arguments.target_error)
    for one in done.adapters:
        line = f"{one.before} -> {one.after}: lost {100 * one.error:.2f} % of its norm"
        if waveforms:
            line += f", {100 * lost_features(model, bank, one, waveforms):.2f} % of what it changes of the features"
        if texts and len(texts) == len(waveforms):
            before, after = (word_errors(model, bank, found, waveforms, texts) for found in (one.before, one.after))
            if before is not None and after is not None:
                line += f"; WER {100 * before:.2f} % -> {100 * after:.2f} %"
        print(line)
    ranks, large, small = ", ".join(map(str, done.ranks)), done.bytes_before, done.bytes_after
    print(
        f"{counted(len(done.adapters), 'adapter')} in {counted(len(done.ranks), 'cluster')} (ranks {ranks}): "
        f"{large / 1e6:.2f} MB -> {small / 1e6:.2f} MB, {large / small:.1f} times smaller"
    )
