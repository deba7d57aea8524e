"""A group of processes that exchange messages before a run: rank 0 holds the store."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from dtl.core.errors import RankFailed
from dtl.core.process_env import get_local_rank

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

EXTRA_SECONDS = 5.0  # that other ranks wait longer than rank 0, which reports who is missing


@dataclass(frozen=True)
class RankGroup:
    """The group, as one rank sees it.

    `hosts`: the nodes in the order of the ranks, as far as known. `timeout_seconds`: how long
    rank 0 waits for the others.
    """

    rank: int
    local_rank: int
    world_size: int
    master_addr: str
    master_port: int
    hosts: Sequence[str]
    timeout_seconds: float

    @classmethod
    def from_environment(
        cls, environment: Mapping[str, str], *, hosts: Sequence[str], timeout_seconds: float
    ) -> RankGroup:
        """Read the variables that a launcher has set."""
        return cls(
            rank=int(environment.get("RANK", "0")),
            local_rank=get_local_rank(environment),
            world_size=int(environment.get("WORLD_SIZE", "1")),
            master_addr=environment.get("MASTER_ADDR", "127.0.0.1"),
            master_port=int(environment.get("MASTER_PORT", "0")),
            hosts=hosts,
            timeout_seconds=timeout_seconds,
        )

    def host_name(self, rank: int) -> str:
        """Return the node of a rank that has sent nothing."""
        if not self.hosts:
            return f"the node of rank {rank}"
        return self.hosts[rank * len(self.hosts) // self.world_size]


def connect(group: RankGroup) -> Store:
    """Return the store of the group. Raises RankFailed where rank 0 cannot be reached."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    is_first = group.rank == 0
    timeout = group.timeout_seconds if is_first else group.timeout_seconds + EXTRA_SECONDS
    try:
        return TCPStore(
            group.master_addr,
            group.master_port,
            world_size=group.world_size,
            is_master=is_first,
            timeout=timedelta(seconds=timeout),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as error:
        address = f"{group.master_addr} at port {group.master_port}"
        reason = str(error).splitlines()[0]
        action = "listen at" if is_first else "connect to"
        raise RankFailed.of(
            socket.gethostname(),
            f"cannot {action} {address} ({reason})",
            "check the network between the nodes: `interface` and `master_suffix` of the site",
        ) from error


def wait_for_reports(store: Store, group: RankGroup) -> set[int]:
    """Return the ranks that have not sent a report when the timeout of the group ends."""
    limit = time.monotonic() + group.timeout_seconds
    missing = set(range(group.world_size))
    while missing and time.monotonic() < limit:
        missing = {rank for rank in missing if not store.check([f"report/{rank}"])}
        time.sleep(0.05)
    return missing


def send_report(store: Store, group: RankGroup, report: dict[str, Any]) -> None:
    """Send what this rank has to report, as JSON."""
    store.set(f"report/{group.rank}", json.dumps(report))


def receive_reports(store: Store, group: RankGroup) -> list[dict[str, Any]]:
    """Return the reports sent so far, in the order of the ranks."""
    present = [rank for rank in range(group.world_size) if store.check([f"report/{rank}"])]
    return [json.loads(store.get(f"report/{rank}")) for rank in present]


def leave(store: Store, group: RankGroup) -> None:
    """Leave the group; rank 0, which holds the store, leaves last."""
    if group.rank != 0:
        store.set(f"left/{group.rank}", "")
        return
    limit = time.monotonic() + EXTRA_SECONDS
    present = {rank for rank in range(1, group.world_size) if store.check([f"report/{rank}"])}
    while present and time.monotonic() < limit:
        present = {rank for rank in present if not store.check([f"left/{rank}"])}
        time.sleep(0.02)
