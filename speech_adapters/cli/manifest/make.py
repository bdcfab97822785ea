"""A manifest of your own recordings: a folder and a table, texts beside the audio, or what the paths say.

  speech-adapters manifest make calls --table calls.csv -o calls.jsonl
  speech-adapters manifest make calls -o calls.jsonl                     a .txt beside each recording is its text
  speech-adapters manifest make talks -o talks.jsonl                     an .srt or .vtt: an utterance per subtitle
  speech-adapters manifest make talks --texts srt -o talks.jsonl          of Whisper's .txt, .srt and .vtt, say which
  speech-adapters manifest make talks --tiers anna,ben -o talks.jsonl     tiers of Praat's or ELAN's files
  speech-adapters manifest make clips --pattern "{speaker}/{emotion}-{}" -o clips.jsonl

The table (CSV or TSV) names the recordings by path or name, with or without suffix. Columns are known by usual names
(file, path; text, transcript, sentence; speaker, client_id; emotion; label; start, duration), others by --columns.
Beside a recording, subtitles (.srt, .vtt) and Audacity's labels (.txt) are an utterance each; so are the intervals of
the tiers named. The speakers are ELAN's participants, or the names of several tiers; where these are roles, such as
agent and customer, let the paths say who speaks: --tiers agent,customer --pattern "{speaker}".
"""

from __future__ import annotations

import argparse
import sys

from speech_adapters.cli.manifest.arguments import COLUMNS, add_output, channel, names, pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The folder and what is said of it."""
    parser.add_argument("folder", help="of the recordings (wav, flac, ogg/opus, mp3, ...); searched with all in it")
    parser.add_argument("--table", help="CSV or TSV with a row per utterance")
    parser.add_argument("--columns", type=pairs, help=f"{COLUMNS}; numbers from 1 for a table without a header")
    parser.add_argument("--pattern", help='what the paths say, without suffix: "{speaker}/{emotion}-{}"')
    parser.add_argument(
        "--tiers", type=names, default=(), help="of Praat's .TextGrid or ELAN's .eaf beside each recording: anna,ben"
    )
    parser.add_argument(
        "--texts", choices=["txt", "srt", "vtt"], help="which to read where several are beside a recording"
    )
    parser.add_argument("--channel", type=channel, help="of files with several: a number from 0, or mix")
    add_output(parser)


def run(arguments: argparse.Namespace) -> None:
    """Say what was taken as what, what was left out, and what the manifest holds."""
    from speech_adapters.data.audio_suffixes import unreadable_message
    from speech_adapters.data.corpus_check import channel_findings
    from speech_adapters.data.formats.folder import read_folder
    from speech_adapters.data.formats.tiers import KINDS
    from speech_adapters.errors import counted

    content = read_folder(
        arguments.folder,
        table=arguments.table,
        columns=arguments.columns,
        pattern=arguments.pattern,
        tiers=arguments.tiers,
        texts=arguments.texts,
        channel=arguments.channel,
    )
    if (table := content.table) is not None:
        kept = f"; kept under their names: {', '.join(table.kept)}" if table.kept else ""
        print("columns  " + ", ".join(f"{column} -> {key}" for key, column in table.columns.items()) + kept)
        if table.left_out:
            print(f"left out: the columns {', '.join(table.left_out)}, whose keys others hold", file=sys.stderr)
    if content.left_out:
        texts = f".{arguments.texts}" if arguments.texts else ".txt, .srt, .vtt"
        beside = KINDS if arguments.tiers else f"text beside ({texts})"
        said = "without a row in the table" if arguments.table else f"without a {beside}"
        count = counted(len(content.left_out), "recording")
        print(f"left out: {count} {said}, such as {content.left_out[0]}", file=sys.stderr)
    if content.unreadable:
        print(f"left out: {unreadable_message(content.unreadable, arguments.folder)}", file=sys.stderr)
    content.manifest.write(arguments.output)
    print(f"{arguments.output}: {content.manifest.summary()}")
    for finding in channel_findings(content.manifest, content.manifest.need_channel()):
        print(f"note: {finding}", file=sys.stderr)
    if not arguments.table and not arguments.pattern and all(u.text is None for u in content.manifest):
        print(
            "note: neither texts nor speakers are known: no .txt, .srt or .vtt beside the recordings, no --table, no "
            f"--pattern, no --tiers of a {KINDS}",
            file=sys.stderr,
        )
