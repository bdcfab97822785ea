"""Task heads: small trainable modules on top of a frozen encoder with adapters."""

from speech_adapters.heads.base import HEADS, HeadConfig, HeadModule, HeadOutput, head_from_dict
from speech_adapters.heads.classification import ClassificationHead, balanced_class_weights
from speech_adapters.heads.ctc import CTCHead, check_ctc_lengths
from speech_adapters.heads.slots import SlotsHead
from speech_adapters.heads.speaker import SpeakerHead

__all__ = [
    "HEADS", "CTCHead", "ClassificationHead", "HeadConfig", "HeadModule", "HeadOutput", "SlotsHead", "SpeakerHead",
    "balanced_class_weights", "check_ctc_lengths", "head_from_dict",
]  # fmt: skip
