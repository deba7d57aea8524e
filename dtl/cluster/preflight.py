"""Before a model loads: all processes of a run meet, and say on which node something is wrong."""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from dtl.backends.base import EXCLUDED_NODES, UNFIT_NODE
from dtl.cluster.node_probe import Blame, Seen, look
from dtl.core.errors import DtlError, Fault, RankFailed
from dtl.core.files import write_json
from dtl.core.process_env import number_on_node, take_slurm_rank
from dtl.run.folder import RunFolder

if TYPE_CHECKING:
    from torch.distributed import Store  # type: ignore[attr-defined]

USAGE = (
    "python -m dtl.cluster.preflight RUN_FOLDER [--seconds N] [--floor GB/s] [--nodes HOST,HOST]"
)
SECONDS = 60.0
LATER = 5.0  # the others wait so much longer than the first, who says who has not come
NUMBERS = {"cuda": 2**25, "cpu": 2**20}  # fp32 in one exchange
TIMES = 5


@dataclass(frozen=True)
class Found:
    """One thing that is wrong, on one node."""

    host: str
    blame: Blame
    problem: str
    fix: str

    def __str__(self) -> str:
        return str(Fault(self.host, self.problem, self.fix))


@dataclass(frozen=True)
class Verdict:
    """What all processes agree on. `bandwidth`: of an all-reduce over all of them, GB/s."""

    faults: tuple[Found, ...]
    bandwidth: float | None = None

    @property
    def exit_code(self) -> int:
        """0 fit, 2 something that the user must fix, 3 a node that another should stand in for."""
        if not self.faults:
            return 0
        return (
            UNFIT_NODE
            if all(found.blame == "node" for found in self.faults)
            else DtlError.exit_code
        )

    @property
    def unfit(self) -> list[str]:
        """The nodes to leave out."""
        return sorted({found.host for found in self.faults if found.blame == "node"})


@dataclass(frozen=True)
class Meeting:
    """How the processes find one another. `hosts`: the node of each rank, as far as known."""

    rank: int
    local_rank: int
    ranks: int
    address: str
    port: int
    hosts: Sequence[str]
    seconds: float

    def host(self, rank: int) -> str:
        """The node of a rank that has said nothing."""
        if not self.hosts:
            return f"the node of rank {rank}"
        return self.hosts[rank * len(self.hosts) // self.ranks]


def examine(folder: RunFolder, meeting: Meeting, *, floor: float | None) -> Verdict:
    """The same verdict on every rank that reaches the first one. Raises RankFailed on one that
    does not. `floor`: least bandwidth, GB/s."""
    seen = look(folder, rank=meeting.rank, local_rank=meeting.local_rank)
    if meeting.ranks == 1:
        return Verdict(judged([seen]))
    store = _meet(meeting)
    store.set(f"seen/{meeting.rank}", json.dumps(asdict(seen)))
    if meeting.rank == 0:
        verdict = Verdict((*_absent(store, meeting), *judged(_all_seen(store, meeting))))
        store.set("fit", "" if verdict.faults else "yes")
    fit = store.get("fit").decode() == "yes"
    device = folder.plan.layout.device
    bandwidth = _bandwidth(store, meeting, device) if fit else None
    if meeting.rank == 0:
        if bandwidth is not None:
            verdict = Verdict(_slow(bandwidth, floor, seen.host), bandwidth)
        store.set("verdict", json.dumps(asdict(verdict)))
        _part(store, meeting)
        return verdict
    stored = json.loads(store.get("verdict"))
    store.set(f"left/{meeting.rank}", "")
    faults = tuple(Found(**found) for found in stored["faults"])
    return Verdict(faults, stored["bandwidth"])


def judged(seen: Sequence[Seen]) -> tuple[Found, ...]:
    """What the processes have seen, and where their nodes are unlike most."""
    found = [Found(one.host, *told) for one in seen for told in one.faults]
    for name in dict.fromkeys(name for one in seen for name in one.same):
        by_host = {one.host: one.same.get(name, "absent") for one in seen}
        usual = Counter(by_host.values()).most_common(1)[0][0]
        others = ", ".join(host for host, value in by_host.items() if value == usual)
        found += [
            Found(
                host,
                "user",
                f"{name} is {value} here, and {usual} on {others}",
                "install the same on every node",
            )
            for host, value in by_host.items()
            if value != usual
        ]
    return tuple(dict.fromkeys(found))


def _meet(meeting: Meeting) -> Store:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    first = meeting.rank == 0
    patience = meeting.seconds if first else meeting.seconds + LATER
    try:
        return TCPStore(
            meeting.address,
            meeting.port,
            world_size=meeting.ranks,
            is_master=first,
            timeout=timedelta(seconds=patience),
            wait_for_workers=False,
        )
    except (RuntimeError, ValueError) as fault:
        reached = f"{meeting.address} at port {meeting.port}"
        why = str(fault).splitlines()[0]
        raise RankFailed.of(
            socket.gethostname(),
            f"cannot listen at {reached} ({why})" if first else f"does not reach {reached} ({why})",
            "see which interface joins the nodes (`interface` and `master_suffix` of the site)",
        ) from fault


def _absent(store: Store, meeting: Meeting) -> tuple[Found, ...]:
    """Ranks that have not come in time. Waits for the others."""
    limit = time.monotonic() + meeting.seconds
    missing = set(range(meeting.ranks))
    while missing and time.monotonic() < limit:
        missing = {rank for rank in missing if not store.check([f"seen/{rank}"])}
        time.sleep(0.05)
    by_host: dict[str, list[str]] = {}
    for rank in sorted(missing):
        by_host.setdefault(meeting.host(rank), []).append(str(rank))
    return tuple(
        Found(
            host,
            "node",
            f"rank {', '.join(ranks)} has not reached {meeting.address} in {meeting.seconds:.0f} s",
            "see whether the node is up, and which interface joins the nodes",
        )
        for host, ranks in by_host.items()
    )


def _all_seen(store: Store, meeting: Meeting) -> list[Seen]:
    come = [rank for rank in range(meeting.ranks) if store.check([f"seen/{rank}"])]
    told = [json.loads(store.get(f"seen/{rank}")) for rank in come]
    return [
        Seen(**{**one, "faults": tuple(tuple(fault) for fault in one["faults"])}) for one in told
    ]


def _bandwidth(store: Store, meeting: Meeting, device: str) -> float:
    """Bytes that one rank moves in a ring's all-reduce, by the median time: GB/s."""
    import torch
    from torch import distributed

    numbers = NUMBERS[device]
    where = torch.device(device, meeting.local_rank) if device == "cuda" else torch.device("cpu")
    if device == "cuda":
        where = torch.device("cuda", meeting.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(where)
    distributed.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=distributed.PrefixStore("exchange", store),  # type: ignore[attr-defined]
        rank=meeting.rank,
        world_size=meeting.ranks,
        timeout=timedelta(seconds=meeting.seconds),
    )
    try:
        values, taken = torch.ones(numbers, device=where), []
        for _ in range(TIMES + 1):
            start = time.perf_counter()
            distributed.all_reduce(values)
            values.div_(meeting.ranks)
            if device == "cuda":
                torch.cuda.synchronize(where)
            taken.append(time.perf_counter() - start)
    finally:
        distributed.destroy_process_group()
    moved = 2 * (meeting.ranks - 1) / meeting.ranks * values.nbytes
    return moved / statistics.median(taken[1:]) / 1e9


def _slow(bandwidth: float, floor: float | None, host: str) -> tuple[Found, ...]:
    if floor is None or bandwidth >= floor:
        return ()
    return (
        Found(
            host,
            "user",
            f"an all-reduce over all nodes moves {bandwidth:.2f} GB/s, and the site's floor is "
            f"{floor:g}",
            "see the `interface` and `environment` of the site; NCCL_DEBUG=INFO says what it took",
        ),
    )


def _part(store: Store, meeting: Meeting) -> None:
    """The first process holds the store, so it leaves last."""
    limit = time.monotonic() + LATER
    left = {rank for rank in range(1, meeting.ranks) if store.check([f"seen/{rank}"])}
    while left and time.monotonic() < limit:
        left = {rank for rank in left if not store.check([f"left/{rank}"])}
        time.sleep(0.02)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 fit, 2 something that the user must fix, 3 a node is unfit.

    The first process says what was found, and leaves it in preflight.json, beside the word of how
    the launch ended; unfit nodes are added to unfit_nodes.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        folder, options = _options(given)
        take_slurm_rank(os.environ)
        meeting = Meeting(
            rank=int(os.environ.get("RANK", "0")),
            local_rank=number_on_node(os.environ),
            ranks=int(os.environ.get("WORLD_SIZE", "1")),
            address=os.environ.get("MASTER_ADDR", "127.0.0.1"),
            port=int(os.environ.get("MASTER_PORT", "0")),
            hosts=[host for host in options.get("nodes", "").split(",") if host],
            seconds=float(options.get("seconds", SECONDS)),
        )
        start = time.monotonic()
        floor = float(options["floor"]) if "floor" in options else None
        verdict = examine(folder, meeting, floor=floor)
    except DtlError as fault:
        print(f"preflight: {fault}", file=sys.stderr, flush=True)
        return UNFIT_NODE if isinstance(fault, RankFailed) else fault.exit_code
    if meeting.rank == 0:
        _tell(folder, verdict, meeting, seconds=time.monotonic() - start)
    return verdict.exit_code


def _tell(folder: RunFolder, verdict: Verdict, meeting: Meeting, *, seconds: float) -> None:
    for found in verdict.faults:
        print(f"preflight: {found}", file=sys.stderr, flush=True)
    if not verdict.faults:
        moved = f", {verdict.bandwidth:.2f} GB/s" if verdict.bandwidth is not None else ""
        print(f"preflight: {meeting.ranks} processes in {seconds:.1f} s{moved}", flush=True)
    write_json(folder.path / "preflight.json", {**asdict(verdict), "seconds": seconds})
    if verdict.faults:
        folder.write_exit_code(verdict.exit_code)
    if verdict.unfit:
        unfit = folder.path / EXCLUDED_NODES
        known = unfit.read_text(encoding="utf-8").strip().split(",") if unfit.is_file() else []
        unfit.write_text(",".join(sorted({*known, *verdict.unfit} - {""})), encoding="utf-8")


def _options(given: Sequence[str]) -> tuple[RunFolder, dict[str, str]]:
    names = [name.removeprefix("--") for name in given[1::2]]
    if len(given) % 2 == 0 or not set(names) <= {"seconds", "floor", "nodes"}:
        raise DtlError.of("command line", f"dtl.cluster.preflight cannot do {given}", USAGE)
    return RunFolder.open(Path(given[0])), dict(zip(names, given[2::2], strict=True))


if __name__ == "__main__":
    sys.exit(main())
