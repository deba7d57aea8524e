"""Pre-flight check: find missing, unfit and different nodes before a model is loaded."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dtl.backends.base import EXCLUDED_NODES, UNFIT_NODE
from dtl.cluster import rank_group
from dtl.cluster.bandwidth import measure_bandwidth
from dtl.cluster.node_probe import Blame, NodeReport, probe_node
from dtl.cluster.rank_group import RankGroup
from dtl.core.errors import DtlError, Fault, RankFailed
from dtl.core.files import write_record, write_text
from dtl.core.process_env import set_rank_from_slurm
from dtl.launch.leftover_processes import check_port
from dtl.run.folder import RunFolder

USAGE = (
    "python -m dtl.cluster.preflight RUN_FOLDER [--seconds N] [--floor GB/s] [--nodes HOST,HOST]"
)
TIMEOUT_SECONDS = 60.0
NODE_NAME = r"[\w.-]+"  # a damaged name would exclude another node, or none


@dataclass(frozen=True)
class NodeFault:
    """One problem of one node. `blame`: "node" where another node would do, else "user"."""

    host: str
    blame: Blame
    problem: str
    fix: str

    def __str__(self) -> str:
        return str(Fault(self.host, self.problem, self.fix))


@dataclass(frozen=True)
class PreflightResult:
    """The result, the same on all ranks. `bandwidth`: of an all-reduce over all ranks, GB/s."""

    faults: tuple[NodeFault, ...]
    bandwidth: float | None = None

    @property
    def exit_code(self) -> int:
        """0 all nodes are fit, 2 the user must fix something, 3 another node would do."""
        if not self.faults:
            return 0
        is_node = all(fault.blame == "node" for fault in self.faults)
        return UNFIT_NODE if is_node else DtlError.exit_code

    @property
    def unfit_nodes(self) -> list[str]:
        """The nodes to exclude."""
        return sorted({fault.host for fault in self.faults if fault.blame == "node"})


def run_preflight(folder: RunFolder, group: RankGroup, *, floor: float | None) -> PreflightResult:
    """Probe this node, and return the same result on every rank that connects to rank 0.

    `floor`: least bandwidth, GB/s. Raises RankFailed on a rank that cannot connect to rank 0.
    """
    # 1. What this process finds on its node.
    report = probe_node(folder, rank=group.rank, local_rank=group.local_rank)
    if group.world_size == 1:
        return PreflightResult(find_faults([report]))
    if group.rank == 0:
        check_port(group.master_port)
    # 2. Rank 0 collects the reports, and tells all ranks whether the nodes are fit.
    store = rank_group.connect(group)
    rank_group.send_report(store, group, asdict(report))
    result = PreflightResult(())
    if group.rank == 0:
        missing = rank_group.wait_for_reports(store, group)
        reports = map(_report_from_json, rank_group.receive_reports(store, group))
        result = PreflightResult((*_missing_ranks(missing, group), *find_faults(list(reports))))
        store.set("fit", "" if result.faults else "yes")
    # 3. If they are, all ranks measure the bandwidth together.
    if store.get("fit").decode() == "yes":
        bandwidth = measure_bandwidth(store, group, folder.plan.layout.device)
        result = PreflightResult(tuple(_check_floor(bandwidth, floor, report.host)), bandwidth)
    # 4. All ranks return the result of rank 0.
    if group.rank == 0:
        store.set("result", json.dumps(asdict(result)))
    else:
        stored = json.loads(store.get("result"))
        faults = tuple(NodeFault(**fault) for fault in stored["faults"])
        result = PreflightResult(faults, stored["bandwidth"])
    rank_group.leave(store, group)
    return result


def find_faults(reports: Sequence[NodeReport]) -> tuple[NodeFault, ...]:
    """Return the faults that the processes report, and where a node differs from most others."""
    faults = [NodeFault(report.host, *fault) for report in reports for fault in report.faults]
    for name in dict.fromkeys(name for report in reports for name in report.versions):
        by_host = {report.host: report.versions.get(name, "absent") for report in reports}
        usual = Counter(by_host.values()).most_common(1)[0][0]
        others = ", ".join(host for host, value in by_host.items() if value == usual)
        faults += [
            NodeFault(
                host,
                "user",
                f"{name} is {value} here, and {usual} on {others}",
                "install the same on every node",
            )
            for host, value in by_host.items()
            if value != usual
        ]
    return tuple(dict.fromkeys(faults))


def _missing_ranks(ranks: set[int], group: RankGroup) -> Iterator[NodeFault]:
    by_host: dict[str, list[str]] = {}
    for rank in sorted(ranks):
        by_host.setdefault(group.host_name(rank), []).append(str(rank))
    for host, names in by_host.items():
        yield NodeFault(
            host,
            "node",
            f"rank {', '.join(names)} has not reached {group.master_addr} in "
            f"{group.timeout_seconds:.0f} s",
            "check whether the node is up, and `interface` of the site",
        )


def _report_from_json(stored: dict[str, object]) -> NodeReport:
    faults = stored["faults"]
    assert isinstance(faults, list)
    return NodeReport(**{**stored, "faults": tuple(tuple(fault) for fault in faults)})  # type: ignore[arg-type]


def _check_floor(bandwidth: float, floor: float | None, host: str) -> Iterator[NodeFault]:
    if floor is not None and bandwidth < floor:
        yield NodeFault(
            host,
            "user",
            f"an all-reduce over all nodes reaches {bandwidth:.2f} GB/s (expected at least "
            f"{floor:g} GB/s, the bandwidth_floor of the site)",
            "check `interface` and `environment` of the site; NCCL_DEBUG=INFO shows the network",
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check on this rank, and return its exit code.

    Exit codes: 0 all nodes are fit, 2 the user must fix something, 3 a node is unfit. Rank 0 prints
    the faults and writes preflight.json, the exit code of the launch, and the nodes to exclude.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        folder, options = _parse_arguments(arguments)
        set_rank_from_slurm(os.environ)
        group = RankGroup.from_environment(
            os.environ,
            hosts=[host for host in options.get("nodes", "").split(",") if host],
            timeout_seconds=float(options.get("seconds", TIMEOUT_SECONDS)),
        )
        start = time.monotonic()
        floor = float(options["floor"]) if "floor" in options else None
        result = run_preflight(folder, group, floor=floor)
    except RankFailed as fault:
        if group.rank == 0:  # it cannot listen: another node would do
            (found,) = fault.faults
            unfit = PreflightResult((NodeFault(found.location, "node", found.problem, found.fix),))
            _report_result(folder, unfit, group, seconds=time.monotonic() - start)
        else:
            print(f"preflight: {fault}", file=sys.stderr, flush=True)
        return UNFIT_NODE
    except DtlError as fault:
        print(f"preflight: {fault}", file=sys.stderr, flush=True)
        return fault.exit_code
    if group.rank == 0:
        _report_result(folder, result, group, seconds=time.monotonic() - start)
    return result.exit_code


def _report_result(
    folder: RunFolder, result: PreflightResult, group: RankGroup, *, seconds: float
) -> None:
    for fault in result.faults:
        print(f"preflight: {fault}", file=sys.stderr, flush=True)
    if not result.faults:
        speed = f", {result.bandwidth:.2f} GB/s" if result.bandwidth is not None else ""
        print(f"preflight: {group.world_size} processes in {seconds:.1f} s{speed}", flush=True)
    write_record(folder.path / "preflight.json", {**asdict(result), "seconds": seconds})
    if result.faults:
        folder.write_exit_code(result.exit_code)
    if result.unfit_nodes:
        file = folder.path / EXCLUDED_NODES
        text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
        known = [name for name in text.strip().split(",") if re.fullmatch(NODE_NAME, name)]
        write_text(file, ",".join(sorted({*known, *result.unfit_nodes})), sync=True)


def _parse_arguments(arguments: Sequence[str]) -> tuple[RunFolder, dict[str, str]]:
    names = [name.removeprefix("--") for name in arguments[1::2]]
    if len(arguments) % 2 == 0 or not set(names) <= {"seconds", "floor", "nodes"}:
        raise DtlError.of("command line", f"dtl.cluster.preflight cannot run {arguments}", USAGE)
    return RunFolder.open(Path(arguments[0])), dict(zip(names, arguments[2::2], strict=True))


if __name__ == "__main__":
    sys.exit(main())
