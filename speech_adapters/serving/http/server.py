"""From a command line to a server that runs."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import json
import logging
import math
import os
import re
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import h11
import torch
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from speech_adapters.bank.bank import Bank
from speech_adapters.errors import CheckpointError, ConfigError, InputError, Interrupted, InUseError
from speech_adapters.locks import hold
from speech_adapters.model import SpeechAdapterModel
from speech_adapters.saving.base import Base
from speech_adapters.saving.parts import load_part
from speech_adapters.saving.places import folder_of
from speech_adapters.serving.catalog import Catalog, UnknownModel, check_folder, read_named, split_name
from speech_adapters.serving.engine import Engine, EngineSettings
from speech_adapters.serving.http import errors
from speech_adapters.serving.http.app import create_app
from speech_adapters.serving.http.guard import Guard
from speech_adapters.serving.http.keys import ApiKey, Keys
from speech_adapters.serving.http.models import take_up
from speech_adapters.serving.http.settings import HttpSettings
from speech_adapters.serving.http.uploads import clear_uploads

log = logging.getLogger("speech_adapters.serving")

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ANY_ADDRESS = ("0.0.0.0", "::")


def serve(arguments: argparse.Namespace) -> None:
    """Serve what the command line asks for, until it is stopped.

    Raises:
        ConfigError, CheckpointError: what cannot be served, before anything listens.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=_terminal())
    for name in ("httpx", "uvicorn"):
        logging.getLogger(name).setLevel(logging.WARNING)
    settings = HttpSettings(
        max_body=_bytes("--max-body", arguments.max_body, 2**20),
        max_requests=arguments.max_requests,
        max_waiting=arguments.max_waiting,
        timeout=arguments.timeout,
        max_sessions=arguments.max_sessions,
        origins=tuple(map(page_origin, arguments.origin)),
        hosts=(*LOOPBACK, *_own_host(arguments.host), *map(host_name, arguments.host_name)),
        uploads=_uploads(arguments.uploads),
        log_requests=arguments.log_requests,
        page=not arguments.no_page,
    )
    listening = _listen(arguments.host, arguments.port)
    clear_uploads()
    keys = Keys() if arguments.keys is None else Keys.read(arguments.keys)
    models = _models(arguments)
    engine = Engine(
        models,
        Catalog(models[0].encoder),
        EngineSettings(
            batch_seconds=arguments.batch_seconds,
            deadline=arguments.deadline / 1000,
            memory=_bytes("--memory", arguments.memory, 2**30),
            precision=arguments.precision,
            max_seconds=arguments.max_seconds,
        ),
    )
    for place in (*arguments.adapters, *_added(settings.uploads)):
        add_place(engine, place)
    keys = _with_names(keys, engine.catalog)
    server = Server(create_app(engine, settings, keys))
    with contextlib.suppress(KeyboardInterrupt, Interrupted):  # uvicorn raises the signal again when it has stopped
        server.run([listening])
    left = "what was not answered yet is lost" if server.force_exit else "all that was taken has been answered"
    log.info("stopped; %s", left)


def _terminal() -> TextIO:
    """Standard error by a descriptor of its own: that of others is turned away while libmpg123 reads."""
    try:
        return open(os.dup(2), "w", buffering=1, encoding="utf-8", errors="backslashreplace")
    except OSError:  # closed, as daemons may have it
        return sys.stderr


def add_place(engine: Engine, place: str | Path) -> None:
    """Serve all that is in a folder or a bank, or one version of a bank, called as ``NAME=FOLDER`` has it.

    Raises:
        CheckpointError: see :func:`~speech_adapters.serving.catalog.read_named`; a name that is taken.
    """
    for served, calls in read_named(place, engine.encoder):
        if served.name in engine.catalog:
            raise CheckpointError(
                f"{place}: {served.name!r} is served already; call one of the two otherwise: --adapters NAME=FOLDER."
            )
        if served.size > engine.settings.memory:
            raise CheckpointError(f"{place}: {served.name!r} is larger than the memory for adapters (--memory).")
        if served.adapter is not None and not served.heads:
            log.warning("%s: no head near it was trained on it; it serves embeddings alone", served.adapter)
        engine.catalog.add(served, *calls)


def _listen(host: str, port: int) -> socket.socket:
    """The address, taken before anything slow is done."""
    if not host:  # as of a variable that is not set; sockets take it for every address
        raise ConfigError("--host: is empty; name an address, 0.0.0.0 for every one of this machine.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OverflowError as error:
        raise ConfigError(f"{host}:{port}: ports end at 65535; choose another --port or --host.") from error
    except OSError as error:  # Python repeats the address behind the reason
        reason = str(error.strerror or error).partition(" (")[0]
        raise ConfigError(f"{host}:{port}: {reason}; choose another --port or --host.") from error


def configuration(app: ASGIApp, timeout: float) -> uvicorn.Config:
    """How uvicorn runs the application: one process, errors in our form, and time enough to finish what was taken."""
    return uvicorn.Config(
        app, http=_Protocol, log_config=None, access_log=False, server_header=False, timeout_keep_alive=30,
        ws_max_size=1 << 20, lifespan="on", timeout_graceful_shutdown=math.ceil(timeout) + 5,
    )  # fmt: skip


class _Protocol(H11Protocol):
    """uvicorn's HTTP/1.1, which answers what is no HTTP with an error in our form too."""

    def send_400_response(self, msg: str) -> None:
        """Answer and hang up."""
        content = json.dumps(errors.body(400, "this is not HTTP/1.1", code="invalid_http")).encode()
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=content),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


class Server(uvicorn.Server):
    """Says where it listens, and lets live sessions end before connections do."""

    def __init__(self, app: Guard, port: int = 8000) -> None:
        super().__init__(configuration(app, app.settings.timeout))
        self.app, self.config.port = app, port

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where, and who may ask."""
        await super().startup(sockets)
        if not self.started or not sockets:
            return
        engine, keys = self.app.engine, self.app.keys.keys
        host, port = sockets[0].getsockname()[:2]
        shown = "localhost" if host in ANY_ADDRESS else f"[{host}]" if ":" in host else host
        names = [served.name for served in engine.catalog]
        log.info("models: %s%s", ", ".join(names[:20]), " ..." if len(names) > 20 else "")
        log.info("%d models on %s: http://%s:%d/", len(engine.catalog), engine.encoder.name, shown, port)
        if host not in LOOPBACK:
            who = f"{len(keys)} keys may ask" if keys else "and anyone there may ask: see --keys"
            where = "every address of this machine" if host in ANY_ADDRESS else host
            log.warning("other machines can reach it on %s, unencrypted; %s", where, who)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more, and finish what was taken."""
        for server in self.servers:
            server.close()  # no new connections
        await self.app.end_sessions()  # uvicorn itself would cut them off
        await super().shutdown(sockets)


def _models(arguments: argparse.Namespace) -> list[SpeechAdapterModel]:
    """A model per device, all of the same base."""
    name, revision = arguments.encoder, None
    if name is None:
        if not arguments.adapters:
            raise ConfigError("name what to serve: --adapters FOLDER, or --encoder NAME, or both.")
        name, revision = base_of(split_name(arguments.adapters[0])[1])
    auto = "cuda" if torch.cuda.is_available() else "cpu"
    devices = [auto if device == "auto" else device for device in arguments.device.split(",")]
    try:
        return [SpeechAdapterModel.from_pretrained(name, revision=revision, device=device) for device in devices]
    except RuntimeError as error:
        raise ConfigError(f"--device {arguments.device}: {str(error).splitlines()[0]}") from error


def base_of(place: str) -> tuple[str, str | None]:
    """The base that the first part in a place names; of a bank, the one base that it has."""
    folder = folder_of(place)
    check_folder(folder)
    if (folder / "bank.json").is_file():
        bank = Bank(folder)
        found = {one.facts.base: str(one) for one in bank.search() if one.facts.kind == "adapter"}
        if len(found) > 1:
            raise CheckpointError(f"{folder}: adapters for {', '.join(sorted(found))}; choose with --encoder.")
        folder = bank.path(found.popitem()[1]) if found else folder
    for kind, inside in (("adapter", "adapters"), ("fusion", "fusions")):
        for path in [folder / f"{kind}.json", *sorted((folder / inside).glob(f"*/{kind}.json"))]:
            if path.is_file():
                base = Base(**load_part(path.parent, kind)[0]["base"])
                return base.name, base.revision_here
    raise CheckpointError(f"{folder}: no adapters/NAME there that would tell the base; name it: --encoder.")


def _added(uploads: Path | None) -> Sequence[Path]:
    return [] if uploads is None else sorted(path.parent for path in uploads.glob("[!.]*/adapter.json"))


def _uploads(folder: str | None) -> Path | None:
    if folder is None:
        return None
    path = Path(folder).absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--uploads {folder}: {error.strerror}; choose another folder.") from error
    try:
        hold(path)
    except InUseError as error:
        raise ConfigError(
            f"--uploads {folder}: another server keeps its adapters there; end it, or choose another folder."
        ) from error
    except InputError as error:
        raise ConfigError(f"--uploads {folder}: cannot be written; choose another folder.") from error
    take_up(path)
    return path


def _bytes(flag: str, given: float, unit: int) -> int:
    if not 0 < given < math.inf:
        raise ConfigError(f"{flag} {given:g}: give a number above 0; where there shall be no limit, a large one.")
    return int(given * unit)


def _own_host(host: str) -> Sequence[str]:
    return [] if host in ANY_ADDRESS else [host.lower()]


def host_name(given: str) -> str:
    """A name as requests are held against it: in small letters, which browsers write."""
    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(given))
    if given != "*" and not re.fullmatch(r"[\w.-]+", given):
        raise ConfigError(f"--host-name {given}: give a name alone, such as speech.example, without scheme and port.")
    return given.lower()


def page_origin(given: str) -> str:
    """A page's origin as browsers send it."""
    origin = given.lower().removesuffix("/")
    if (parts := re.fullmatch(r"(https?)://[^/?#@\s*]+", origin)) is None:
        raise ConfigError(f"--origin {given}: give scheme and name of the page's server: https://intranet.example.")
    return origin.removesuffix({"http": ":80", "https": ":443"}[parts[1]])


def _with_names(keys: Keys, catalog: Catalog) -> Keys:
    """The keys with their adapters by the names under which these are served."""

    def named(key: ApiKey, name: str) -> str:
        try:
            return catalog.find(name).name
        except UnknownModel as error:
            raise ConfigError(
                f"key {key.name!r}: there is no model {name!r}; remove it from the key's adapters."
            ) from error

    return Keys(
        tuple(
            key if key.adapters is None else replace(key, adapters=tuple(named(key, name) for name in key.adapters))
            for key in keys.keys
        )
    )
