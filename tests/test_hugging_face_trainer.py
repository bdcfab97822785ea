"""Someone who brings their own ``transformers.Trainer`` is served by the model itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_models import TARGETS, batch, small_model
from transformers import Trainer, TrainingArguments

from speech_adapters import CTCHead, SpeechAdapterModel, Vocabulary
from speech_adapters.errors import AudioError, ConfigError


def tones(count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Utterances of 0.4 s, each a tone, with the letters of its pitch as labels."""
    time = torch.arange(6400) / 16_000
    return [
        {"input_values": torch.sin(2 * torch.pi * 200 * (1 + i % 2) * time), "labels": torch.tensor([5 + i % 2, 7])}
        for i in range(count)
    ]


def collate(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    stacked = {key: torch.stack([row[key] for row in rows]) for key in rows[0]}
    return {**stacked, "attention_mask": torch.ones_like(stacked["input_values"], dtype=torch.long)}


def test_the_trainer_of_hugging_face_trains_evaluates_saves_and_resumes(tmp_path):
    torch.manual_seed(0)
    model = SpeechAdapterModel.from_pretrained("tiny-wavlm")
    model.add_adapter("a", "lora+l")
    model.add_head("asr", CTCHead(Vocabulary.wav2vec2()))
    model.train_adapter("a", head="asr")
    frozen = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}

    def trainer(steps: int) -> Trainer:
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            max_steps=steps,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            learning_rate=3e-3,
            save_steps=3,
            logging_steps=1,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
            gradient_checkpointing=True,
        )
        return Trainer(model, arguments, train_dataset=tones(), eval_dataset=tones(), data_collator=collate)

    own = trainer(3)
    own.train()
    losses = [log["loss"] for log in own.state.log_history if "loss" in log]
    assert model.gradient_checkpointing and losses[-1] < 0.8 * losses[0]
    own.compute_metrics = lambda predicted: {"width": predicted.predictions[0].shape[-1]}
    assert own.evaluate()["eval_width"] == 32
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in frozen.items())

    saved = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    assert saved.keys() == model.state_dict().keys()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.zero_()
    again = trainer(3)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))  # all its updates are made: it only loads
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("method", ["lora-all", "dora", "elp", "full"])
def test_no_two_tensors_of_the_state_dict_share_memory(method):
    state = small_model(method=method, head=True).state_dict()
    places = [tensor.data_ptr() for tensor in state.values() if tensor.numel()]
    assert len(set(places)) == len(places) and all(tensor.is_contiguous() for tensor in state.values())


def test_transformers_names_mean_the_same():
    waveforms, lengths = batch()
    model = small_model(method="elp", head=True).eval()
    mask = torch.arange(waveforms.shape[1]) < lengths[:, None]
    mine = model(waveforms, lengths, targets=TARGETS)
    for attention_mask in (mask, mask.long()):
        theirs = model(input_values=waveforms, attention_mask=attention_mask, labels=TARGETS)
        assert torch.equal(mine.loss, theirs.loss) and torch.equal(mine.logits, theirs.logits)
    for arguments, error, message in (
        ({"input_values": waveforms}, ConfigError, "waveforms and input_values are the same argument"),
        ({"attention_mask": mask}, ConfigError, "lengths and attention_mask are the same argument"),
        ({"targets": TARGETS, "labels": TARGETS}, ConfigError, "targets and labels are the same argument"),
    ):
        with pytest.raises(error, match=message):
            model(waveforms, lengths, **arguments)
    with pytest.raises(AudioError, match="padding behind the samples only"):
        model(waveforms, attention_mask=mask.flip(1))


def test_an_output_is_read_by_attribute_name_or_number():
    waveforms, lengths = batch()
    model = small_model(method="elp", head=True).eval()
    output = model(waveforms, lengths, targets=TARGETS)
    assert output.keys()[:2] == ("loss", "logits") and "embedding" not in output
    assert output["loss"] is output[0] is output.loss and output[1] is output["logits"]
    assert output[1:] == output.to_tuple()[1:] and len(output.to_tuple()) == len(output.keys())
    assert [*output] == [*output.keys()] and dict(output)["logits"] is output.logits
    with pytest.raises(KeyError, match="'embedding'; this output has loss, logits, last_hidden_state"):
        output["embedding"]
    assert model(waveforms, lengths)[0] is not None and "loss" not in model(waveforms, lengths)


def test_recomputation_is_switched_on_and_off():
    model = small_model(method="lora", head=True)
    for on, off in (
        (model.gradient_checkpointing_enable, model.gradient_checkpointing_disable),
        (model.activation_checkpointing_enable, model.activation_checkpointing_disable),
    ):
        on({"use_reentrant": False}, every_n_layers=1)
        assert model.gradient_checkpointing
        for refused in ({"use_reentrant": True}, {"policy": "some"}):
            with pytest.raises(ConfigError, match="gradient checkpointing: .* is not supported here; leave it out"):
                on(refused)
        off()
        assert not model.gradient_checkpointing
    assert model.config is model.encoder.config and model.device == torch.device("cpu")


def test_the_documented_example_runs(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "own_trainer.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec"), {})
    assert (tmp_path / "own_run" / "mine" / "adapter.json").is_file()
    assert list((tmp_path / "own_run").glob("checkpoint-*/model.safetensors"))
