"""The CTC head: loss, lengths, decoding of the checkpoint's own head."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import nn

from speech_adapters.data.manifest import Utterance
from speech_adapters.errors import ConfigError, ManifestError, TextError
from speech_adapters.heads import HEADS, CTCHead, HeadConfig, HeadOutput, check_ctc_lengths, head_from_dict
from speech_adapters.heads.ctc import CTCHeadModule
from speech_adapters.metrics.wer import word_error_rate
from speech_adapters.text import Vocabulary

SMALL = Vocabulary(("<pad>", "|", "A", "B"))


def brute_force_loss(log_probs: torch.Tensor, target: list[int]) -> float:
    """``-log`` of the summed probability of every path over (T, V) that collapses to ``target``."""
    total = 0.0
    for path in product(range(log_probs.shape[1]), repeat=log_probs.shape[0]):
        collapsed = [s for i, s in enumerate(path) if s != 0 and (i == 0 or s != path[i - 1])]
        if collapsed == target:
            total += log_probs[range(len(path)), path].sum().exp().item()
    return -torch.tensor(total).log().item()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_loss_is_the_sum_over_all_alignments(reduction):
    torch.manual_seed(0)
    head = CTCHead(SMALL, reduction=reduction).build(8)
    logits, lengths = torch.randn(2, 6, 4), torch.tensor([6, 4])
    targets = torch.tensor([[2, 2, 3], [3, 1, -100]])
    expected = [
        brute_force_loss(logits[0].log_softmax(-1), [2, 2, 3]),
        brute_force_loss(logits[1, :4].log_softmax(-1), [3, 1]),
    ]
    expected = (expected[0] / 3 + expected[1] / 2) / 2 if reduction == "mean" else sum(expected)
    assert head.loss(HeadOutput(logits, lengths), targets).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_two_passes_are_asked_to_agree(reduction):
    torch.manual_seed(0)
    head = CTCHead(SMALL, reduction=reduction, consistency=0.3).build(8)
    first, second, lengths = torch.randn(2, 6, 4), torch.randn(2, 6, 4), torch.tensor([6, 4])
    targets, loss = torch.tensor([[2, 2, 3], [3, 1, -100]]), 0.0
    for row, (length, symbols) in enumerate([(6, 3), (4, 2)]):
        ours = HeadOutput(torch.stack([first[row, :length], second[row, :length]]), torch.tensor([length] * 2))
        ctc = CTCHead(SMALL, reduction="sum").build(8).loss(ours, targets[row].expand(2, -1)) / 2
        p, q = (torch.distributions.Categorical(logits=view[row, :length]) for view in (first, second))
        apart = torch.distributions.kl_divergence(p, q) + torch.distributions.kl_divergence(q, p)
        loss += (ctc + 0.3 * apart.sum() / 2) / (2 * symbols if reduction == "mean" else 1)
    first[1, 4:] = float("inf")  # whatever stands behind an utterance
    torch.testing.assert_close(head.loss(HeadOutput(first, lengths, second=second), targets), loss)


def test_the_second_pass_drops_other_features_and_is_trainings_alone():
    torch.manual_seed(0)
    head = CTCHead(SMALL, hidden_size=16, dropout=0.5, consistency=0.2).build(8)
    features, lengths, targets = torch.randn(2, 9, 8), torch.tensor([9, 7]), torch.tensor([[2, 3], [3, -100]])
    output = head(features, lengths)
    assert output.second is not None and not torch.equal(output.second, output.logits)
    head.loss(output, targets).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in head.parameters())
    same = HeadOutput(output.logits, lengths, second=output.logits)  # agreement costs nothing
    torch.testing.assert_close(head.loss(same, targets), head.loss(HeadOutput(output.logits, lengths), targets))
    assert head.eval()(features, lengths).second is None
    assert CTCHead(SMALL).build(8)(features, lengths).second is None


def test_loss_is_computed_in_fp32_under_autocast():
    torch.manual_seed(0)
    head = CTCHead().build(8).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = head(torch.randn(2, 20, 8), torch.tensor([20, 15]))
        assert output.logits.dtype == torch.bfloat16
        loss = head.loss(output, torch.tensor([[5, 6, 7], [8, -100, -100]]))
    assert loss.dtype == torch.float32
    full = head.loss(HeadOutput(output.logits.float(), output.lengths), torch.tensor([[5, 6, 7], [8, -100, -100]]))
    assert torch.equal(loss, full)


def test_an_impossible_alignment_is_neither_infinite_nor_harmful():
    head = CTCHead(SMALL).build(8)
    output = head(torch.randn(2, 3, 8), torch.tensor([3, 3]))
    loss = head.loss(output, torch.tensor([[2, 2, 2], [2, 3, -100]]))
    loss.backward()
    assert loss.isfinite() and all(p.grad.isfinite().all() for p in head.parameters())


def test_mistakes_are_those_of_the_best_path_in_words():
    said, meant = ["A B AA B", "", "B"], ["A AB AA", "B A", "B"]
    head = CTCHead(SMALL).build(8)
    rows = [[symbol for s in SMALL.encode(text) for symbol in (s, 0)] for text in said]
    logits = torch.full((3, max(map(len, rows)), 4), -5.0)
    logits[..., 0] = 0.0
    for row, symbols in enumerate(rows):
        logits[row, range(len(symbols)), symbols] = 5.0
    codes = [torch.tensor(SMALL.encode(text)) for text in meant]
    targets = nn.utils.rnn.pad_sequence(codes, batch_first=True, padding_value=-100)
    answer = HeadOutput(logits, torch.tensor([logits.shape[1]] * 3))
    expected = word_error_rate(meant, said, normalizer="none", n=10)
    assert head.mistakes(answer, targets) == (sum(u.errors for u in expected.utterances), 6) == (4, 6)
    symbols = CTCHead(Vocabulary(("<pad>", "|", "A", "B"), delimiter=None)).build(8)
    assert not symbols.config.vocabulary.has_words and symbols.mistakes(answer, targets)[1] > 6


def test_training_learns_the_targets():
    torch.manual_seed(0)
    head = CTCHead(SMALL, hidden_size=16, dropout=0.0).build(8)
    features, lengths, targets = torch.randn(2, 8, 8), torch.tensor([8, 6]), [[2, 3, 1, 2], [3, 3]]
    padded = torch.tensor([[2, 3, 1, 2], [3, 3, -100, -100]])
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss(head(features, lengths), padded).backward()
        optimizer.step()
    assert head.predict(head(features, lengths)) == [SMALL.decode(target) for target in targets] == ["AB A", "BB"]


def test_parameter_counts():
    def count(config: CTCHead, width: int) -> int:
        return sum(p.numel() for p in config.build(width).parameters())

    assert count(CTCHead(), 512) == 512 * 32 + 32  # nn.Linear on the L-adapters' sum
    assert count(CTCHead(hidden_size=10), 512) == 512 * 10 + 10 + 10 * 32 + 32
    assert count(CTCHead(hidden_size=10, kernel_size=7), 512) == 512 * 10 * 7 + 10 + 10 * 32 + 32


def test_a_hidden_layer_joins_neighbouring_frames_and_no_padding():
    torch.manual_seed(0)
    head = CTCHead(SMALL, hidden_size=6, kernel_size=5, dropout=0.0).build(8)
    features = torch.randn(2, 12, 8)
    features[1, 7:] = float("nan")  # whatever stands behind an utterance
    padded = head(features, torch.tensor([12, 7])).logits
    alone = head(features[1:, :7], torch.tensor([7])).logits
    torch.testing.assert_close(padded[1:, :7], alone)
    changed = features.clone()
    changed[0, 6] += 1.0
    moved = (head(changed, torch.tensor([12, 7])).logits[0] - padded[0]).abs().amax(-1) > 1e-6
    assert moved.nonzero().flatten().tolist() == [4, 5, 6, 7, 8]


def test_config_round_trip_through_json():
    vocabulary = Vocabulary.from_texts(["grüße"])
    config = CTCHead(vocabulary, normalizer="none", hidden_size=64, kernel_size=3, dropout=0.2, consistency=0.2)
    again = head_from_dict(json.loads(json.dumps(config.to_dict())))
    assert isinstance(again, CTCHead) and again == config
    assert again.encode("grüße") == config.vocabulary.encode("grüße")


def test_encode_normalises_and_names_the_utterance():
    assert CTCHead().encode("Don’t!") == Vocabulary.wav2vec2().encode("DON'T")
    with pytest.raises(TextError, match="'utt-3'.*'7'"):
        CTCHead().encode("7 up", source="utt-3")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: head_from_dict({"head_type": "ctcc"}), "'ctcc' is unknown.*did you mean 'ctc'"),
        (lambda: head_from_dict({"head_type": "ctc", "drop_out": 0.1}), "'drop_out'.*did you mean 'dropout'"),
        (lambda: CTCHead(reduction="none"), "reduction='none'"),
        (lambda: CTCHead(dropout=1.5), "dropout=1.5"),
        (lambda: CTCHead(hidden_size=0), "hidden_size=0"),
        (lambda: CTCHead(hidden_size=8, kernel_size=4), "kernel_size=4: give an odd number"),
        (lambda: CTCHead(kernel_size=3), "kernel_size=3 is the hidden layer's: set hidden_size"),
        (lambda: CTCHead(consistency=-1), "consistency=-1"),
        (lambda: CTCHead(consistency=0.2, dropout=0.0), "consistency=0.2 compares two dropouts: set dropout above 0"),
        (lambda: CTCHead(normalizer="upper"), "normalizer='upper'"),
        (lambda: CTCHeadModule.from_linear(torch.zeros(5, 8), torch.zeros(5), SMALL), "4 tokens.*5 outputs"),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises((ConfigError, TextError), match=message):
        make()


def test_a_new_head_is_one_class(monkeypatch):
    monkeypatch.setattr("speech_adapters.heads.base.HEADS", HEADS.copy())

    @dataclass(kw_only=True)
    class Toy(HeadConfig):
        head_type: ClassVar[str] = "toy"
        classes: int

        def build(self, input_size):
            return nn.Linear(input_size, self.classes)

        def target(self, utterance):
            return [int(utterance.label)]

    assert head_from_dict({"head_type": "toy", "classes": 3}) == Toy(classes=3)
    with pytest.raises(ConfigError, match="'toy': missing key 'classes'"):
        head_from_dict({"head_type": "toy"})


def test_from_linear_gives_the_logits_of_a_hugging_face_head():
    lm_head = nn.Linear(16, 4)
    head = CTCHeadModule.from_linear(lm_head.weight, lm_head.bias, SMALL, normalizer="none").eval()
    features = torch.randn(2, 5, 16)
    assert torch.equal(head(features, torch.tensor([5, 5])).logits, lm_head(features))
    assert (head.config.normalizer, head.input_size) == ("none", 16)


def test_check_ctc_lengths_is_the_exact_bound():
    targets = [[2, 3], [2, 2, 2], []]
    check_ctc_lengths(targets, [2, 5, 0], ["a", "b", "c"])
    # and the bound is that of the loss: infinite one frame below it, finite on it
    log_probs = torch.zeros(5, 4).log_softmax(-1)
    losses = [nn.functional.ctc_loss(log_probs[:n], torch.tensor([2, 2, 2]), (n,), (3,)) for n in (4, 5)]
    assert [bool(loss.isinf()) for loss in losses] == [True, False]
    with pytest.raises(TextError) as error:
        check_ctc_lengths(targets, torch.tensor([1, 4, 0]), ["a", "b", "c"])
    assert "2 transcripts" in str(error.value) and "'a', 'b'" in str(error.value) and "needs 2" in str(error.value)


def test_check_ctc_lengths_shortens_long_lists():
    with pytest.raises(TextError, match="'0', '1', '2', '3', '4' and 15 more"):
        check_ctc_lengths([[2]] * 20, [0] * 20, list(map(str, range(20))))


def test_an_utterance_without_a_text_is_named() -> None:
    with pytest.raises(ManifestError, match="utterance 'u7' has no text"):
        CTCHead().target(Utterance("u7", Path("u7.wav"), 1.0))
