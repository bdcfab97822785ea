"""Checkpoints as they are published: load, adapt, save, load in a new process, the same output bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from public_checkpoints import CHECKPOINTS, LANGUAGES, LETTERS, LOWER, TOKENIZER, build, ids, save_file
from safetensors.torch import load_file
from small_models import batch, parameters

from speech_adapters.encoders import load_encoder
from speech_adapters.encoders.sources import Source
from speech_adapters.errors import CheckpointError, ConfigError, TextError
from speech_adapters.heads.ctc import CTCHead
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.tasks.asr import SpeechRecognition, use_own_ctc_head
from speech_adapters.text import Vocabulary

ADAPTERS = ("lora", "houlsby")
BY_FOLDER = {checkpoint.folder: checkpoint for checkpoint in CHECKPOINTS}
BASE_960H, MMS = BY_FOLDER["facebook--wav2vec2-base-960h"], BY_FOLDER["facebook--mms-1b-all"]

IN_A_NEW_PROCESS = """
import json, sys, torch
from speech_adapters.model import SpeechAdapterModel
for folder, language in json.loads(sys.argv[1]):
    model = SpeechAdapterModel.from_pretrained(folder, target_lang=language).eval()
    given = torch.load(f"{folder}/given.pt")
    for name, expected in given["features"].items():
        model.load_adapter(f"{folder}/adapters/{name}", name=name)
        with torch.no_grad():
            found = model(given["waveforms"], given["lengths"]).features
        assert torch.equal(found, expected), (folder, name, (found - expected).abs().max())
    print("same", folder)
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> Path:
    """All of them, built."""
    root = tmp_path_factory.mktemp("hub")
    for name, checkpoint in BY_FOLDER.items():
        build(checkpoint, root / name)
    return root


def load(folder: Path, checkpoint) -> SpeechAdapterModel:
    return SpeechAdapterModel.from_pretrained(folder, target_lang=checkpoint.target_lang)


def adapt(model: SpeechAdapterModel, name: str) -> None:
    """One update of an adapter and a new head."""
    waveforms, lengths = batch()
    torch.manual_seed(0)
    model.add_adapter(name, name)
    model.add_head(f"{name}-head", CTCHead())
    model.train_adapter(name, head=f"{name}-head")
    optimizer = torch.optim.Adam(parameters(model), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(waveforms, lengths, targets=torch.tensor([[5], [6]])).loss.backward()
        optimizer.step()
    model.check_alive()
    model.set_head(None)
    model.eval()


def test_each_is_adapted_saved_and_the_same_in_a_new_process(folders):
    waveforms, lengths = batch()
    for name, checkpoint in BY_FOLDER.items():
        model, features = load(folders / name, checkpoint), {}
        frozen = model.eval()(waveforms, lengths).features
        for adapter in ADAPTERS:
            adapt(model, adapter)
            with torch.no_grad():
                features[adapter] = model(waveforms, lengths).features
            assert not torch.equal(features[adapter], frozen), (name, adapter)
            model.save_adapter(adapter, folders / name / "adapters" / adapter)
        given = {"waveforms": waveforms, "lengths": lengths, "features": features}
        torch.save(given, folders / name / "given.pt")
    arguments = [(str(folders / name), checkpoint.target_lang) for name, checkpoint in BY_FOLDER.items()]
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, json.dumps(arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("same") == len(CHECKPOINTS)


@pytest.mark.parametrize("name", [name for name, one in BY_FOLDER.items() if one.recognises])
@torch.no_grad()
def test_a_recogniser_gives_transformers_logits_and_its_own_texts(name, folders):
    import transformers

    checkpoint = BY_FOLDER[name]
    model = load(folders / name, checkpoint)
    use_own_ctc_head(model)
    waveforms = batch()[0][:1]
    options = {} if checkpoint.target_lang is None else {"target_lang": "fra", "ignore_mismatched_sizes": True}
    stock = getattr(transformers, checkpoint.architecture).from_pretrained(folders / name, **options).eval()
    expected = stock(model.encoder.normalized(waveforms)).logits
    output = model(waveforms)
    torch.testing.assert_close(output.logits, expected, atol=1e-4, rtol=1e-4)
    letters = LANGUAGES[checkpoint.target_lang or "eng"] if "mms" in name else LETTERS
    assert list(model.head.config.vocabulary.tokens) == letters
    assert model.head.config.normalizer == ("basic" if "mms" in name else "librispeech")


@pytest.mark.parametrize("name", BY_FOLDER)
@torch.no_grad()
def test_the_frozen_encoder_is_transformers_own(name, folders):
    """Alone; padded batches equal it where the CNN does not normalise over time."""
    import transformers
    from transformers.models.whisper.modeling_whisper import WhisperEncoder

    checkpoint = BY_FOLDER[name]
    encoder = load_encoder(folders / name, target_lang=checkpoint.target_lang)
    stated = checkpoint.files["preprocessor_config.json"].get("do_normalize", False)
    assert encoder.normalize is stated and encoder.language == checkpoint.target_lang
    waveforms, lengths = batch()
    if encoder.family in ("wav2vec2", "hubert", "wavlm", "data2vec-audio") and checkpoint.target_lang is None:
        stock = transformers.AutoModel.from_pretrained(folders / name).eval()
        theirs = stock(encoder.normalized(waveforms[1:, :4800])).last_hidden_state
        torch.testing.assert_close(encoder(waveforms[1:, :4800]).last_hidden_state, theirs, atol=1e-5, rtol=1e-5)
    elif encoder.family == "whisper":
        stock = WhisperEncoder.from_pretrained(folders / name, key_mapping={r"^model\.encoder\.": ""})
        assert all(torch.equal(t, encoder.model.state_dict()[k]) for k, t in stock.state_dict().items())
    if not encoder.group_norm:
        alone = encoder(waveforms[1:, :4800]).last_hidden_state[0]
        together = encoder(waveforms, lengths).last_hidden_state[1, : len(alone)]
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shards", [False, True], ids=["one", "shards"])
@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("old_names", [False, True], ids=["new-names", "old-names"])
def test_every_kind_of_weights_is_the_same_encoder_and_head(shards, weights, old_names, folders, tmp_path):
    from dataclasses import replace

    expected = load_encoder(folders / BASE_960H.folder)
    found = load_encoder(build(replace(BASE_960H, shards=shards, weights=weights, old_names=old_names), tmp_path))
    assert found.fingerprint == expected.fingerprint
    assert torch.equal(found.ctc.weight, expected.ctc.weight) and torch.equal(found.ctc.bias, expected.ctc.bias)
    if shards:
        lost = next(tmp_path.glob("*-00002-of-00002.*"))
        lost.unlink()
        with pytest.raises(CheckpointError, match=f"{lost.name}: cannot be read"):
            load_encoder(tmp_path)


def test_languages_differ_and_what_is_not_there_is_named(folders, tmp_path):
    encoders = {lang: load_encoder(folders / MMS.folder, target_lang=lang) for lang in (None, *LANGUAGES)}
    assert len({encoder.fingerprint for encoder in encoders.values()}) == 4
    assert {key: len(encoder.ctc.bias) for key, encoder in encoders.items()} == {
        None: 33, **{language: len(tokens) for language, tokens in LANGUAGES.items()}
    }  # fmt: skip
    with pytest.raises(ConfigError, match="holds 3 languages and it has no 'deu': .*NAME:LANGUAGE.*eng, fra"):
        load_encoder(folders / MMS.folder, target_lang="deu")
    with pytest.raises(ConfigError, match="target_lang='fra' has no adapter.fra.safetensors .* not an MMS checkpoint"):
        load_encoder(folders / BASE_960H.folder, target_lang="fra")
    build(MMS, tmp_path)
    (tmp_path / "adapter.fra.safetensors").unlink()
    with pytest.raises(ConfigError, match="there are: eng, uzb-script_cyrillic"):
        load_encoder(tmp_path, target_lang="fra")
    save_file(
        {"lm_head.weight": torch.zeros(3, 32), "lm_head.bias": torch.zeros(3)}, tmp_path / "adapter.fra.safetensors"
    )
    with pytest.raises(CheckpointError, match="the language's tensor 'encoder.layers.0.adapter_layer.* is missing"):
        load_encoder(tmp_path, target_lang="fra")
    fra = load_file(folders / MMS.folder / "adapter.fra.safetensors")
    save_file({k: v for k, v in fra.items() if not k.startswith("lm_head.")}, tmp_path / "adapter.fra.safetensors")
    assert load_encoder(tmp_path, target_lang="fra").ctc is None, "the head beside it is another language's"
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ConfigError, match="holds 3 languages and say which one"):
        load_encoder(tmp_path)


def test_an_adapter_knows_its_language(folders, tmp_path):
    model = SpeechAdapterModel.from_pretrained(folders / MMS.folder, target_lang="fra")
    model.add_adapter("a", "bitfit")
    model.save_adapter("a", tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter.json").read_text())["base"]["language"] == "fra"
    again = SpeechAdapterModel.from_adapter(tmp_path / "a")
    assert again.encoder.fingerprint == model.encoder.fingerprint and again.encoder.language == "fra"
    with pytest.raises(
        CheckpointError, match="was trained on the language 'fra' of .* loaded with \"its weights' own\""
    ):
        SpeechAdapterModel.from_pretrained(folders / MMS.folder).load_adapter(tmp_path / "a")


@pytest.mark.parametrize("language", ["its own file", "another's weights", "no file"])
def test_an_adapter_made_without_asking_for_a_language_finds_its_base_again(language, tmp_path):
    """Also of a fine-tuned MMS, which has the one language of its own weights, and no file of it."""
    folder = build(MMS, tmp_path / "mms")
    if language == "another's weights":
        (folder / "adapter.eng.safetensors").write_bytes((folder / "adapter.fra.safetensors").read_bytes())
    if language == "no file":
        for file in folder.glob("adapter.*"):
            file.unlink()
        (folder / "vocab.json").write_text(json.dumps({"eng": ids(LANGUAGES["eng"])}))
        assert load_encoder(folder, target_lang="eng").fingerprint == load_encoder(folder).fingerprint
    model = SpeechAdapterModel.from_pretrained(folder)
    model.add_adapter("a", "bitfit")
    model.save_adapter("a", tmp_path / "a")
    again = SpeechAdapterModel.from_adapter(tmp_path / "a")
    assert again.encoder.fingerprint == model.encoder.fingerprint
    model.encoder.language = "eng"  # files from before had that of the tokenizer
    model.save_adapter("a", tmp_path / "before")
    SpeechAdapterModel.from_pretrained(folder).load_adapter(tmp_path / "before")


@pytest.mark.parametrize("name", ["microsoft--wavlm-base-plus", "openai--whisper-base"])
def test_an_adapter_of_peft_beside_the_weights_is_no_part_of_the_base(name, folders, tmp_path):
    """``transformers`` adds it by itself, and a fetch from the hub leaves it behind."""
    folder = build(BY_FOLDER[name], tmp_path / name)
    model = SpeechAdapterModel.from_pretrained(folder)
    adapt(model, "lora")
    model.save_adapter("lora", folder)
    assert (folder / "adapter_config.json").is_file()
    again = SpeechAdapterModel.from_pretrained(folder)
    assert again.encoder.fingerprint == model.encoder.fingerprint
    again.load_adapter(folder)
    with torch.no_grad():
        assert torch.equal(again.eval()(*batch()).features, model(*batch()).features)


@pytest.mark.parametrize("name", BY_FOLDER)
@pytest.mark.parametrize("attention", ["flash_attention_2", "sdpa", "flex_attention"])
def test_what_a_config_says_of_attention_is_passed_over(name, attention, folders, tmp_path):
    checkpoint, expected = BY_FOLDER[name], load(folders / name, BY_FOLDER[name])
    folder = build(checkpoint, tmp_path / name)
    config = json.loads((folder / "config.json").read_text())
    for key in ("attn_implementation", "_attn_implementation"):
        (folder / "config.json").write_text(json.dumps({**config, key: attention}))
        assert load(folder, checkpoint).encoder.fingerprint == expected.encoder.fingerprint


SYMBOLS = {
    "upper case": ({"vocab.json": ids(LETTERS), "tokenizer_config.json": TOKENIZER}, 32, LETTERS, "librispeech"),
    "lower case": ({"vocab.json": ids(LOWER)}, 30, LOWER, "basic"),
    "added tokens": (
        {"vocab.json": ids(LOWER), "added_tokens.json": {"<s>": 30, "</s>": 31}}, 32, [*LOWER, "<s>", "</s>"], "basic"
    ),
    "added tokens without outputs": (
        {"vocab.json": ids(LOWER), "added_tokens.json": {"<s>": 30, "</s>": 31}}, 30, LOWER, "basic"
    ),
    "added tokens by id": (
        {
            "vocab.json": ids(LOWER),
            "tokenizer_config.json": {
                "pad_token": "[PAD]",
                "added_tokens_decoder": {
                    number: {"content": token} for number, token in (("0", "[PAD]"), ("30", "<s>"), ("31", "</s>"))
                },
            },
        },
        32, [*LOWER, "<s>", "</s>"], "basic",
    ),
    "delimiter that is no symbol": (
        {"vocab.json": ids(["<pad>", *LOWER[3:]]), "tokenizer_config.json": {"word_delimiter_token": "|"}}, 28,
        ["<pad>", *LOWER[3:]], "basic",
    ),
    "padding by its number": (
        {"vocab.json": ids(["_", "<pad>", "[PAD]", *LOWER[2:]])}, 31, ["_", "<pad>", "[PAD]", *LOWER[2:]], "basic",
    ),
    "one language": ({"vocab.json": {"deu": ids(LOWER)}}, 30, LOWER, "basic"),
    "lower case and a capital": ({"vocab.json": ids([*LOWER, "İ"])}, 31, [*LOWER, "İ"], "basic"),
    "upper case with accents": ({"vocab.json": ids([*LETTERS, "Ä"])}, 33, [*LETTERS, "Ä"], "basic-upper"),
    "both cases": (
        {"vocab.json": ids([*LOWER, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"])}, 56, [*LOWER, *"ABCDEFGHIJKLMNOPQRSTUVWXYZ"],
        "none",
    ),
    "capitals in a tokenizer of small letters": (
        {"vocab.json": ids(LETTERS), "tokenizer_config.json": {**TOKENIZER, "do_lower_case": True}}, 32,
        [letter.lower() for letter in LETTERS], "basic",
    ),
    "capital padding in a tokenizer of small letters": (
        {
            "vocab.json": ids(["PAD", *LETTERS[1:]]),
            "tokenizer_config.json": {"pad_token": "PAD", "do_lower_case": True},
        },
        32, ["PAD", *(letter.lower() for letter in LETTERS[1:])], "basic",
    ),
    "a newer special token": (
        {
            "vocab.json": ids(["_", *LOWER[1:]]), "special_tokens_map.json": {"pad_token": "_"},
            "tokenizer_config.json": {"pad_token": "[UNK]"},
        },
        30, ["_", *LOWER[1:]], "basic",
    ),
    "special tokens without outputs": ({"vocab.json": ids([*LOWER, "<s>", "</s>"])}, 30, LOWER, "basic"),
    "padding named beside": (
        {"vocab.json": ids(["_", *LOWER[1:]]), "special_tokens_map.json": {"pad_token": "_"}}, 30, ["_", *LOWER[1:]],
        "basic",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SYMBOLS)
def test_symbols_are_read_from_all_the_files_that_hold_them(case, tmp_path):
    from dataclasses import replace

    files, outputs, tokens, normalizer = SYMBOLS[case]
    preprocessor = {"preprocessor_config.json": BASE_960H.files["preprocessor_config.json"]}
    config = {**BASE_960H.config, "vocab_size": outputs}
    build(replace(BASE_960H, config=config, files=preprocessor | files), tmp_path)
    model = SpeechAdapterModel.from_pretrained(tmp_path)
    use_own_ctc_head(model)
    vocabulary = model.head.config.vocabulary
    assert list(vocabulary.tokens) == tokens and vocabulary.blank == tokens[0]
    assert model.head.config.normalizer == normalizer
    assert vocabulary.decode(model.head.config.encode("Hello")).lower() == "hello"


def test_symbols_that_do_not_belong_to_the_head_are_refused(tmp_path):
    from dataclasses import replace

    files = {**BASE_960H.files, "vocab.json": ids(LETTERS[:-10])}
    build(replace(BASE_960H, files=files), tmp_path)
    with pytest.raises(ConfigError, match="22 tokens for a CTC head of 32 outputs"):
        use_own_ctc_head(SpeechAdapterModel.from_pretrained(tmp_path))
    (tmp_path / "added_tokens.json").write_text(json.dumps({"Z": "last"}))
    with pytest.raises(TextError, match="ids must be whole numbers, 0 to 22, each once"):
        use_own_ctc_head(SpeechAdapterModel.from_pretrained(tmp_path))


@pytest.mark.parametrize("vocab", [ids(LOWER), {**ids(LOWER), "z": 31}, {t: n + 2 for t, n in ids(LOWER).items()}])
def test_outputs_without_a_token_are_said_and_left_out_of_texts(vocab, tmp_path):
    """As where a recogniser was fine-tuned with ``vocab_size`` left at 32."""
    from dataclasses import replace

    files = {**BASE_960H.files, "vocab.json": vocab, "tokenizer_config.json": {"pad_token": "[PAD]"}}
    build(replace(BASE_960H, config={**BASE_960H.config, "vocab_size": 32}, files=files), tmp_path)
    model = SpeechAdapterModel.from_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"has no token for .* of the head's 32 outputs"):
        use_own_ctc_head(model)
    found = model.head.config.vocabulary
    unnamed = sorted({*range(32)} - {*vocab.values()})
    assert len(found) == 32 and found.decode(unnamed) == ""
    assert all(found.tokens[number] == token for token, number in vocab.items())
    assert found.encode("hello world", "x") == [vocab[token] for token in "hello|world"]


@pytest.mark.parametrize("family", ["wav2vec2", "wavlm", "data2vec-audio"])
@pytest.mark.parametrize("changes", [{}, {"num_adapter_layers": 2, "output_hidden_size": 24}], ids=["3", "2-narrow"])
@torch.no_grad()
def test_an_output_adapter_runs_and_padding_does_not_reach_it(family, changes):
    from small_encoders import stock_model

    from speech_adapters.encoders import Encoder

    extra = {"num_conv_pos_embeddings": 5} if family == "data2vec-audio" else {}
    stock = stock_model(family, "pre-norm", layers=2, add_adapter=True, **extra, **changes)
    encoder = Encoder(stock, "small")
    waveforms, lengths = batch()
    together = encoder(waveforms, lengths)
    assert together.frame_lengths.tolist() == [20, 15] and encoder.output_size == changes.get("output_hidden_size", 64)
    assert (
        together.output_lengths.tolist() == ([3, 2] if not changes else [5, 4]) == together.output_mask.sum(1).tolist()
    )
    for row, length in enumerate(lengths.tolist()):
        one = waveforms[row : row + 1, :length]
        alone = encoder(one).last_hidden_state
        torch.testing.assert_close(alone, stock(encoder.normalized(one)).last_hidden_state, atol=1e-5, rtol=0)
        found = together.last_hidden_state[row, : alone.shape[1]]
        torch.testing.assert_close(found, alone[0], atol=1e-4, rtol=0)


def test_a_language_and_a_revision_are_part_of_the_name(folders: Path, tmp_path: Path) -> None:
    """Recipes and command lines have one word for an encoder."""
    place = folders / MMS.folder
    named, given = load_encoder(f"{place}:fra"), load_encoder(place, target_lang="fra")
    assert (named.name, named.language, named.fingerprint) == (given.name, "fra", given.fingerprint)
    assert load_encoder(f"{place}:fra", target_lang="fra").language == "fra"
    with pytest.raises(ConfigError, match=r"says 'fra', and target_lang='eng' was given beside it"):
        load_encoder(f"{place}:fra", target_lang="eng")
    with pytest.raises(ConfigError, match="it has no 'xxx'.*NAME:LANGUAGE"):
        load_encoder(f"{place}:xxx")
    (odd := tmp_path / "model:fra").symlink_to(place)
    assert load_encoder(odd).language is None, "a folder of this very name is meant"
    asked = Source.read("facebook/mms-1b-all@c0ffee:uzb-script_cyrillic")
    assert asked == Source("facebook/mms-1b-all", "c0ffee", "uzb-script_cyrillic")
    assert Source.read("C:\\encoders\\mms") == Source("C:\\encoders\\mms")
    task = SpeechRecognition(vocabulary="checkpoint", encoder=f"{place}:fra")
    assert task.vocabulary == Vocabulary.load(place, language="fra")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_a_tokenizers_link_to_what_is_gone_is_no_absent_file(file, tmp_path):
    build(BASE_960H, tmp_path)
    (tmp_path / file).unlink(missing_ok=True)
    (tmp_path / file).symlink_to(tmp_path / "gone")
    with pytest.raises((CheckpointError, TextError), match=f"{file}: a link to a file that does not exist"):
        use_own_ctc_head(SpeechAdapterModel.from_pretrained(tmp_path))


def test_a_head_whose_tokenizer_lies_elsewhere_says_where_to_find_it(tmp_path):
    """As in the checkpoint-500 of a training that was given no processor."""
    build(BASE_960H, tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ConfigError, match="no vocab.json for its CTC head; save its tokenizer there"):
        use_own_ctc_head(SpeechAdapterModel.from_pretrained(tmp_path))


def test_a_served_recogniser_writes_in_its_own_symbols(folders, tmp_path):
    """Those of the language that was asked for, and of the outputs that have none."""
    from dataclasses import replace

    from speech_adapters.serving.catalog import Catalog
    from speech_adapters.serving.residents import load as read

    wider = replace(BASE_960H, config={**BASE_960H.config, "vocab_size": len(LETTERS) + 2})
    french, unnamed = load_encoder(folders / MMS.folder, target_lang="fra"), load_encoder(build(wider, tmp_path))
    with pytest.warns(UserWarning, match="no token for 32, 33 of the head's 34 outputs"):
        heads = [read(next(iter(Catalog(encoder))), encoder).heads["transcription"] for encoder in (french, unnamed)]
    assert [list(head.config.vocabulary.tokens) for head in heads] == [
        LANGUAGES["fra"], [*LETTERS, "<unused32>", "<unused33>"]
    ]  # fmt: skip
