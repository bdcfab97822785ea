"""``WS /v1/realtime``."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
