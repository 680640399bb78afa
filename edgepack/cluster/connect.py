"""Finding a Ray cluster, and looking at its machines before any work is sent there."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from typing import Any

from edgepack.cluster import task
from edgepack.cluster.executor import Cluster, unlike
from edgepack.errors import EdgepackError, missing_extra

AUTO, CLIENT = "auto", "ray://"
HINT = "auto, HOST:PORT (this machine is a node of it) or ray://HOST:10001 (it is none)"
TIMEOUT = 10.0
"""Seconds for a connection."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
"""Ray tells its makers nothing, whatever the environment says, and the terminal nothing of devices
that nobody asked for."""


@contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """The cluster at an address, for as long as the body runs."""
    os.environ.update(QUIET)
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "cluster") from None
    place = _resolve(address)
    with _handlers_kept():
        _join(ray, place)
    _silence(ray)
    try:
        cluster = Cluster(ray, look_at_nodes(ray))
        try:
            yield cluster
        finally:
            cluster.leave()
    finally:
        ray.shutdown()


def refuse_device(name: str) -> None:
    """Work is shared by processors: bytes would depend on which machine has which accelerator."""
    if name != "cpu":
        raise EdgepackError(
            f"--cluster and --device {name}: machines share work on their processors only",
            hint="leave out one of them",
        )


def _resolve(address: str) -> str:
    """Where to connect to; "auto" stays where Ray knows of a cluster on this machine."""
    place = os.environ.get("RAY_ADDRESS", AUTO) if address == AUTO else address
    if place == AUTO:
        return place
    host, _, port = place.removeprefix(CLIENT).rpartition(":")
    if not host or not port.isdigit():
        raise EdgepackError(f"--cluster: {place!r} is no address", hint=f"write {HINT}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), TIMEOUT).close()
    except (OSError, OverflowError) as error:
        raise EdgepackError(
            f"--cluster: nothing answers at {place} ({error})",
            hint="is `ray start --head` running there, and may this machine reach the port?",
        ) from None
    return place


def _join(ray: Any, place: str) -> None:
    host = place.rpartition(":")[0]
    more: dict[str, Any] = {"_node_ip_address": host} if host.startswith("127.") else {}
    if place.startswith(CLIENT):
        _needs_grpc()
        more = {}
    try:
        ray.init(place, log_to_driver=False, logging_level=logging.CRITICAL, **more)
    except Exception as error:  # Ray has many types for it, some of them plain ones
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        raise _cannot_join(place, lines[0][:200], error.__cause__) from error


def _cannot_join(place: str, reason: str, cause: BaseException | None) -> EdgepackError:
    """What Ray says, with what to do about it."""
    if cause is not None and "AuthToken" in str(cause):
        return EdgepackError(
            f"--cluster: {place} does not let this process in",
            hint="RAY_AUTH_MODE and RAY_AUTH_TOKEN have to be the same here as on its machines",
        )
    if place == AUTO:
        return EdgepackError(
            "--cluster auto: this machine is in no Ray cluster, and RAY_ADDRESS is not set",
            hint="start one: ray start --head here, ray start --address=… on the others; or write "
            "the address: " + HINT,
        )
    return EdgepackError(
        f"--cluster: {place} cannot be joined ({reason})",
        hint="every machine needs the same Python and Ray; " + HINT,
    )


def _needs_grpc() -> None:
    if find_spec("grpc") is None:
        raise EdgepackError(
            "--cluster: ray:// needs grpcio, which is not installed",
            hint="pip install 'ray[client]', or make this machine a node and write HOST:PORT",
        )


def _silence(ray: Any) -> None:
    """Keep what Ray says of lost machines off the terminal, where progress is drawn; it has no
    option for that. Work that was done again is counted in the manifest."""
    vars(ray._private.worker)["print_to_stdstream"] = lambda *_, **__: None


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Ray puts a handler of its own for SIGTERM in place; that of edgepack ends in better order."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        with suppress(ValueError):  # not the main thread: nobody could change it
            signal.signal(signal.SIGTERM, handler)


def look_at_nodes(ray: Any) -> list[dict[str, Any]]:
    """What is known of every machine that can work; one that is unlike this one is refused."""
    ray.cloudpickle.register_pickle_by_value(task)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    if not nodes:
        raise EdgepackError(
            "--cluster: no machine of it has a core to work on",
            hint="add some: ray start --address=… on each",
        )
    asked = [
        ray.remote(num_cpus=1, scheduling_strategy=strategy(node["NodeID"], soft=False))(
            task.node_facts
        ).remote()
        for node in nodes
    ]
    wanted, found = task.own_versions(), []
    for node, ref in zip(nodes, asked, strict=True):
        try:
            facts = ray.get(ref)
        except ray.exceptions.RayError:
            continue  # it has left meanwhile
        if wrong := task.differences(wanted, facts["versions"]):
            raise unlike(facts["host"], wrong)
        has = node["Resources"]
        sizes = {"memory": has.get("memory", 0), "store": has.get("object_store_memory", 0)}
        found.append(facts | {"cores": int(has["CPU"]), **sizes})
    return found
