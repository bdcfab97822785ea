"""Server-sent events as OpenAI's clients read them: a JSON object each, and a word that ends the stream."""

from __future__ import annotations

import json
from typing import Any

DONE = "data: [DONE]\n\n"


def event(content: dict[str, Any]) -> str:
    """An event as it is sent."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
