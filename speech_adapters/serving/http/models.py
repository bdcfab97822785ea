"""``/v1/models``: what is served, adapters with the base as ``parent``; ``/v1/adapters``: adding and removing."""

from __future__ import annotations

import asyncio
import re
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request, UploadFile
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from speech_adapters.errors import CheckpointError, ConfigError
from speech_adapters.files import sweep_folder, temporary_of
from speech_adapters.serving.catalog import Catalog, read_folder
from speech_adapters.serving.engine import Engine
from speech_adapters.serving.http.errors import ApiError
from speech_adapters.serving.http.fields import find, written
from speech_adapters.serving.http.keys import allowed
from speech_adapters.serving.http.settings import HttpSettings
from speech_adapters.serving.http.uploads import forget
from speech_adapters.serving.served import NAME, Served

router = APIRouter()

BEFORE = ".before"
"""What an adapter's folder is called while another takes its place; no adapter is called so."""


def described(served: Served, catalog: Catalog) -> dict[str, Any]:
    """A model as OpenAI lists them, and what else is known of it."""
    base = served.method == "base"
    found: dict[str, Any] = {
        "id": served.name,
        "object": "model",
        "created": served.created,
        "owned_by": "speech-adapters",
        "parent": None if base else catalog.base,
        "root": catalog.encoder.name,
        "fingerprint": served.fingerprint,
        "method": served.method,
        "tasks": list(served.tasks),
    }
    if served.labels:
        found["labels"] = {slot: list(labels) for slot, labels in served.labels.items()}
    if "embedding" in served.heads:
        found["calibrated"] = served.calibrated
    if served.members:
        found["members"] = list(served.members)
    return found


@router.get("/v1/models", tags=["models"])
async def list_models(request: Request) -> dict[str, Any]:
    """What this client may ask for."""
    engine: Engine = request.app.state.engine
    names = allowed(request.state.key, (one.name for one in engine.catalog))
    listed = [one for one in engine.catalog if names is None or one.name in names]
    return {"object": "list", "data": [described(one, engine.catalog) for one in listed]}


@router.get("/v1/models/{model:path}", tags=["models"])
async def retrieve_model(request: Request, model: str) -> dict[str, Any]:
    """One of them."""
    engine, served = find(request, model)
    return described(served, engine.catalog)


def _administered(request: Request) -> tuple[Engine, Path]:
    """The engine and the folder of added adapters; an ApiError unless this client may add some."""
    settings: HttpSettings = request.app.state.settings
    if settings.uploads is None:
        raise ApiError(
            403, "adding and removing adapters is off; the server's operator allows it with --uploads FOLDER",
            code="adapters_fixed",
        )  # fmt: skip
    key = request.state.key
    if key is not None and not key.admin:
        raise ApiError(403, "this key may not add or remove adapters", code="not_an_admin")
    return request.app.state.engine, settings.uploads


Administered = Annotated[tuple[Engine, Path], Depends(_administered)]
"""Looked at before the fields, so that who may not add anything is told so whatever they send."""


class AdapterFields(BaseModel):
    """A saved adapter's two files, and those of the heads that were trained on it."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[
        str, written(NAME.pattern, "use up to 100 letters, digits, '_', '-' and '.'; the first is a letter or a digit")
    ] = Field(pattern=f"^{NAME.pattern}$", description="how it will be called")
    adapter: list[UploadFile] = Field(
        alias="adapter[]", min_length=2, max_length=2, description="adapter.json and adapter_model.safetensors"
    )
    heads: list[UploadFile] = Field(
        [], alias="heads[]", max_length=6, description="head.json and head_model.safetensors of each head, in pairs"
    )


@router.post("/v1/adapters", tags=["models"], status_code=201, response_model=None)
async def add_adapter(
    request: Request, own: Administered, form: Annotated[AdapterFields, Form(media_type="multipart/form-data")]
) -> Response:
    """Serve a further adapter, or another one in place of one that was added under this name.

    It is read, checked against the base and run once before anyone is answered with it. Requests that have begun under
    the one before end under it.
    """
    engine, folder = own
    catalog = engine.catalog
    if form.name in catalog and not _is_added(catalog.find(form.name), folder):
        raise ApiError(
            409, f"{form.name!r} belongs to what the server started with; choose another name", param="name"
        )
    async with request.app.state.changing:
        if form.name not in catalog and (folder / form.name).exists():  # it would be lost
            raise ApiError(
                409, f"{form.name!r} lies among the added adapters, put there by another server or by hand, and is "
                "not served here before the next start; choose another name", param="name",
            )  # fmt: skip
        ours = temporary_of(folder / form.name).name  # by which the next start knows it for a killed server's
        incoming = Path(tempfile.mkdtemp(prefix=".incoming-", suffix=ours, dir=folder))
        writing = asyncio.ensure_future(engine.in_decoder(_write, incoming / form.name, form))
        try:
            await asyncio.shield(writing)  # to its end, though the client goes away: see the last line
            before = catalog.find(form.name) if form.name in catalog else None
            added = _moved(await _read(engine, incoming / form.name), incoming / form.name, folder / form.name)
            if before is not None:
                await engine.shelf.settle(before)
            # no await from here on: who goes away leaves the old adapter or the new one, in files and catalog alike
            _swap(incoming, folder, form.name)
            catalog.add(added)
            if before is not None and before.key != added.key:
                engine.shelf.drop(before)
        except CheckpointError as error:
            message = re.sub(rf"{re.escape(str(incoming))}/?", "", str(error))
            raise ApiError(400, f"refused: {message}", param="adapter[]", code="adapter_refused") from error
        finally:
            writing.add_done_callback(lambda _: forget(engine, incoming))
    return JSONResponse(described(added, catalog), 200 if before is not None else 201)


@router.delete("/v1/adapters/{name:path}", tags=["models"])
async def delete_adapter(request: Request, own: Administered, name: str) -> dict[str, Any]:
    """Serve an adapter no more that was added; what has begun under it ends."""
    engine, folder = own
    async with request.app.state.changing:
        served = engine.catalog.find(name)
        if not _is_added(served, folder):
            raise ApiError(
                409, f"{name!r} belongs to what the server started with; only its operator can remove it", param="name"
            )
        await engine.shelf.settle(served)
        engine.catalog.remove(served.name)
        engine.shelf.drop(served)
        # no await: who goes away leaves no files that the next start would serve; nor, by the renaming, does a kill
        gone = temporary_of(folder / served.name)
        shutil.rmtree(gone, ignore_errors=True)  # of a killed server of this process's number
        with suppress(FileNotFoundError):  # removed by hand, or by another server
            (folder / served.name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
    return {"id": served.name, "object": "model", "deleted": True}


def _is_added(served: Served, folder: Path) -> bool:
    """Whether a model was added while the server ran, or one before it."""
    return served.adapter is not None and served.adapter.parent == folder


def take_up(folder: Path) -> None:
    """End what a killed server was at: an adapter that it was about to replace is there again, the rest goes."""
    for before in folder.glob(f".incoming-*/{BEFORE}"):
        name = next((path.name for path in before.parent.iterdir() if path != before), None)
        if name is not None and not (folder / name).exists():
            before.rename(folder / name)
    sweep_folder(folder, at_start=True)


def _write(folder: Path, form: AdapterFields) -> None:
    """The uploaded files under their own names, which are the only ones that there can be."""
    if len(form.heads) % 2:
        raise CheckpointError("heads[]: give head.json and head_model.safetensors of each head")
    heads = [form.heads[number : number + 2] for number in range(0, len(form.heads), 2)]
    named = [("head", folder / "heads" / f"{form.name}-{number}", files) for number, files in enumerate(heads)]
    for kind, place, files in [("adapter", folder, form.adapter), *named]:
        expected = {f"{kind}.json", f"{kind}_model.safetensors"}
        if {file.filename for file in files} != expected:
            raise CheckpointError(f"{kind}: give the files {' and '.join(sorted(expected))}, under these names")
        place.mkdir(parents=True)
        for file in files:
            with (place / str(file.filename)).open("wb") as target:
                shutil.copyfileobj(file.file, target)


def _moved(served: Served, place: Path, target: Path) -> Served:
    """The same model, its files in another folder."""
    heads = {task: None if head is None else target / head.relative_to(place) for task, head in served.heads.items()}
    return replace(served, adapter=target, heads=heads)


def _swap(incoming: Path, folder: Path, name: str) -> None:
    """Have the files of ``incoming`` in place of those in ``folder``, or leave all as it was."""
    target, old = folder / name, incoming / BEFORE
    if target.exists():
        target.rename(old)
    try:
        (incoming / name).rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise


async def _read(engine: Engine, folder: Path) -> Served:
    """What lies in the folder of one adapter, after it has been heard to change something.

    Raises:
        CheckpointError: damaged, of another base, without effect, or larger than the server's memory for adapters.
    """
    found = [served for served, _ in await engine.in_decoder(lambda: list(read_folder(folder, engine.encoder)))]
    if len(found) != 1:
        raise CheckpointError(f"{folder.name}: {len(found)} models in these files; give one adapter and its heads")
    if found[0].size > engine.settings.memory:
        raise CheckpointError(f"{folder.name}: larger than all the memory that the server has for adapters")
    try:
        await engine.probe(found[0])
    except ConfigError as error:
        raise CheckpointError(str(error)) from error
    return found[0]
