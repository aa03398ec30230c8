"""How an engine joins a pool: the ``gpupool`` key of vLLM's ``additional_config``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
from msgspec import Meta

from gpupool.daemon.client import DaemonSession
from gpupool.daemon.protocol import NAME_CHARACTERS_MAX, Working
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.gang.protocol import RANKS_MAX
from gpupool.gang.rank import GangRank
from gpupool.gate import Gate
from gpupool.images.cache import ImageCache, default_folder
from gpupool.pool import MIB, Pool
from gpupool.session import Session
from gpupool.vllm import compat
from gpupool.vllm.reporting import Reporter


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every engine may say of itself.

    ``kv_store_bytes`` limits the host memory for copies of KV blocks; by default there is room for
    all. ``cudagraph_bytes`` is room in the pool for CUDA graphs, of which the device gets back what
    they leave over, and the host does not; without, their memory stays on the device outside the
    pool. ``loading_bytes`` is room in the pool that weights are loaded into on a GPU, until they
    are the model's; without, it is device memory beside the pool. ``verify`` says which copies to
    the device are held against their digests. ``share`` is whether pages and host memory are had in
    common with models of the same weights. ``image_cache`` is the folder that ``--load-format
    gpupool`` keeps images of weights in, and ``image_cache_bytes`` the room that they may take
    there.
    """

    model: str
    kv_store_bytes: Annotated[int, Meta(ge=1)] | None = None
    cudagraph_bytes: Annotated[int, Meta(ge=1)] | None = None
    loading_bytes: Annotated[int, Meta(ge=1)] | None = None
    verify: Literal["always", "sample", "off"] = "always"
    share: bool = False
    image_cache: Annotated[str, Meta(min_length=1)] | None = None
    image_cache_bytes: Annotated[int, Meta(ge=0)] | None = None


class DaemonSettings(EngineSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Join the pool of a daemon.

    ``socket`` is the daemon's, or for a tensor parallel engine those of its ranks' devices, in
    their order. ``ttft_ms`` and ``tbt_ms`` are when the first token of a request is due and how
    long after that each further one, and ``weight`` what the model counts where not all can be on
    time, for a daemon that goes by that.
    """

    socket: str | Annotated[list[str], Meta(min_length=2, max_length=RANKS_MAX)]
    ttft_ms: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    tbt_ms: Annotated[float, Meta(gt=0, le=1e9)] | None = None
    weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0


class EmbeddedSettings(EngineSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Share a pool with the other engines of this process.

    All of them say the same of the pool: ``device``, ``budget_bytes``, ``page_bytes``, and what
    ``gpupool.Pool`` is to have of host memory and files (``host_budget_bytes``,
    ``parking_folder``, ``parking_limit_bytes``).
    """

    device: str
    budget_bytes: int
    page_bytes: int = 64 * MIB
    host_budget_bytes: int | None = None
    parking_folder: str | None = None
    parking_limit_bytes: int | None = None


_OF_THE_POOL = (
    *("budget_bytes", "page_bytes"),
    *("host_budget_bytes", "parking_folder", "parking_limit_bytes"),
)
_LOADING = " (loading)"
_pools: dict[str, tuple[dict[str, Any], Pool]] = {}
_pools_lock = threading.Lock()


def parse(additional_config: Any) -> DaemonSettings | EmbeddedSettings:
    """The settings in an engine's ``additional_config``. Raises UsageError."""
    given = additional_config.get("gpupool") if isinstance(additional_config, dict) else None
    if not isinstance(given, dict):
        raise UsageError(
            "gpupool.vllm.Worker needs additional_config={'gpupool': {...}} with 'socket' and "
            "'model' to join a daemon's pool, or 'device', 'budget_bytes' and 'model' to share "
            "one within the process"
        )
    try:
        if "socket" in given:
            return msgspec.convert(given, DaemonSettings)
        return msgspec.convert(given, EmbeddedSettings)
    except msgspec.ValidationError as error:
        raise UsageError(f"additional_config['gpupool']: {error}") from None


def image_cache(settings: DaemonSettings | EmbeddedSettings) -> ImageCache:
    """The folder of images that an engine uses if it is told to load from one."""
    given = settings.image_cache
    folder = default_folder() if given is None else Path(given).expanduser().absolute()
    return ImageCache(folder, settings.image_cache_bytes)


class Joined(NamedTuple):
    """How an engine's model stands with its pool."""

    session: Session
    min_steps: int
    """The tokens that a turn has at least."""
    gang: GangRank | None = None
    """Of a tensor parallel engine."""

    @property
    def make_gate(self) -> Callable[..., Gate]:
        """What lets the engine's steps begin."""
        return Gate if self.gang is None else self.gang.make_gate


def check_ranks(settings: DaemonSettings | EmbeddedSettings, ranks: int) -> None:
    """Whether an engine of so many ranks can be pooled so. Raises UsageError."""
    sockets = settings.socket if isinstance(settings, DaemonSettings) else ""
    named = 1 if isinstance(sockets, str) else len(sockets)
    if ranks > 1 and isinstance(settings, EmbeddedSettings):
        raise UsageError(
            "the ranks of a tensor parallel engine are processes of their own: start a daemon for "
            "each device, and join their pools with 'socket'"
        )
    if named != ranks:
        raise UsageError(
            f"'socket' names {named} daemons and the engine has {ranks} ranks: name one for each"
        )
    alone = settings.share, settings.kv_store_bytes, settings.loading_bytes
    if ranks > 1 and any(alone):
        raise UsageError(
            "'share', 'kv_store_bytes' and 'loading_bytes' are for engines on one device"
        )
    if settings.loading_bytes is not None:
        loading_name(settings)


def loading_name(settings: EngineSettings) -> str:
    """What the room for loading is called in the pool. Raises UsageError if that is too long."""
    name = settings.model + _LOADING
    if len(name) > NAME_CHARACTERS_MAX:
        raise UsageError(
            "with 'loading_bytes' a model's name has at most "
            f"{NAME_CHARACTERS_MAX - len(_LOADING)} characters"
        )
    return name


def join(settings: DaemonSettings | EmbeddedSettings, rank: int, engine: str) -> Joined:
    """Join as one rank of an engine, all of whose ranks call it by the word ``engine``.

    Raises what joining a pool raises, and UsageError if engines of one process ask for pools of
    one device that differ in size.
    """
    if isinstance(settings, DaemonSettings):
        if not isinstance(settings.socket, str):
            gang = GangRank(settings.socket, settings.model, rank, engine)
            return Joined(gang.session, gang.session.min_tokens, gang)
        session = DaemonSession(Path(settings.socket), settings.model)
        return Joined(session, session.min_tokens)
    if compat.runs_in_child_process():
        raise UsageError(
            "engines share an embedded pool only within one process: set "
            "VLLM_ENABLE_V1_MULTIPROCESSING=0, or join a daemon's pool with 'socket'"
        )
    asked = {name: getattr(settings, name) for name in _OF_THE_POOL}
    with _pools_lock:
        if settings.device not in _pools:
            _pools[settings.device] = (asked, Pool(device=settings.device, **asked))
        first, pool = _pools[settings.device]
        if differing := [name for name in _OF_THE_POOL if first[name] != asked[name]]:
            has = ", ".join(f"{name}={first[name]!r}" for name in differing)
            raise UsageError(
                f"this process has a pool on {settings.device!r} with {has}: give every engine the "
                "same"
            )
        return Joined(pool.session(settings.model), 0)


def reporter(settings: DaemonSettings | EmbeddedSettings, session: Session) -> Reporter | None:
    """Who tells the daemon of the engine's requests; None where nobody wants to know."""
    if not isinstance(settings, DaemonSettings):
        return None
    assert isinstance(session, DaemonSession)
    if not session.follows_requests:
        return None
    ttft_s = None if settings.ttft_ms is None else settings.ttft_ms / 1000
    tbt_s = None if settings.tbt_ms is None else settings.tbt_ms / 1000
    session.set_goals(ttft_s, tbt_s, settings.weight)

    def tell(work: Working) -> bool:
        # An engine that has its memory goes on without the daemon for as long as it can.
        try:
            return session.working(work)
        except DaemonUnavailableError:
            return True  # nobody will ever hear of it

    return Reporter(tell)
