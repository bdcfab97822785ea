"""Task heads: small trainable modules on top of a frozen encoder with adapters."""

from speech_adapters.heads.base import HEADS, HeadConfig, HeadModule, HeadOutput, head_from_dict
from speech_adapters.heads.ctc import CTCHead, check_ctc_lengths

__all__ = ["HEADS", "CTCHead", "HeadConfig", "HeadModule", "HeadOutput", "check_ctc_lengths", "head_from_dict"]
