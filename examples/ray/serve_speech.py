r"""The server on many machines: replicas of the engine behind Ray Serve, each adapter at home on one of them.

    pip install 'speech-adapters[serve,ray]'
    python examples/ray/serve_speech.py --adapters runs/asr_librispeech/latest --replicas 2
    curl http://127.0.0.1:8000/v1/audio/transcriptions -H 'x-session-id: telephone' -F model=telephone \
        -F file=@call.wav

Each replica is the whole server of ``speech-adapters serve`` and can answer for all adapters. Requests that carry the
adapter's name in the header ``x-session-id`` go to the replica that hash gives it, so that every replica keeps a share
of the adapters in memory and its batches mix those; requests without the header go anywhere. Ray's own multiplexing is
not used: it divides batches by model, and mixing them is what the engine is for. Places of adapters must be reachable
from all machines, by one path or as ``bank:NAME@TAG``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ray import serve
from ray.serve.config import RequestRouterConfig
from starlette.types import ASGIApp

from speech_adapters.model import SpeechAdapterModel
from speech_adapters.serving.catalog import Catalog
from speech_adapters.serving.engine import Engine, EngineSettings
from speech_adapters.serving.http.app import create_app
from speech_adapters.serving.http.keys import Keys
from speech_adapters.serving.http.server import add_place, base_of
from speech_adapters.serving.http.settings import HttpSettings

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


@serve.deployment(
    max_ongoing_requests=256,  # as many as can share batches
    request_router_config=RequestRouterConfig(request_router_class=ROUTER),
    health_check_timeout_s=60,
    graceful_shutdown_timeout_s=300,
)
@serve.ingress()
class Speech:
    """One replica: an encoder, its engine, and the routes of the server."""

    def __init__(
        self, adapters: Sequence[str], encoder: str | None, device: str, hosts: tuple[str, ...], keys: str | None
    ) -> None:
        name, revision = base_of(adapters[0]) if encoder is None else (encoder, None)
        model = SpeechAdapterModel.from_pretrained(name, revision=revision, device=device)
        self.engine = Engine([model], Catalog(model.encoder), EngineSettings())
        for place in adapters:
            add_place(self.engine, place)
        self.settings = HttpSettings(hosts=hosts)
        self.keys = None if keys is None else Keys.read(keys)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self.engine, self.settings, self.keys)


def application(
    adapters: Sequence[str],
    encoder: str | None = None,
    *,
    replicas: int = 2,
    gpus: float = 0,
    cpus: float = 1,
    hosts: tuple[str, ...] = ("localhost", "127.0.0.1", "::1"),
    keys: str | None = None,
) -> serve.Application:
    """What ``serve.run`` deploys.

    Args:
        adapters: folders, banks or ``bank:NAME@TAG``.
        gpus, cpus: of each replica.
        hosts: names under which clients reach it.
        keys: file of API keys; without one, everyone may ask.
    """
    resources = {"num_gpus": gpus, "num_cpus": cpus}
    device = "cuda" if gpus else "cpu"
    return Speech.options(num_replicas=replicas, ray_actor_options=resources).bind(
        tuple(adapters), encoder, device, hosts, keys
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapters", "-a", nargs="+", required=True)
    parser.add_argument("--encoder")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--gpus", type=float, default=0, help="of each replica")
    parser.add_argument("--cpus", type=float, default=1, help="of each replica")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host-name", nargs="+", default=[], help="names under which clients reach it")
    parser.add_argument("--keys")
    arguments = parser.parse_args()
    serve.start(http_options={"host": arguments.host, "port": arguments.port})
    deployed = application(
        arguments.adapters, arguments.encoder, replicas=arguments.replicas, gpus=arguments.gpus, cpus=arguments.cpus,
        hosts=("localhost", "127.0.0.1", "::1", *arguments.host_name), keys=arguments.keys,
    )  # fmt: skip
    serve.run(deployed, blocking=True)


if __name__ == "__main__":
    main()
