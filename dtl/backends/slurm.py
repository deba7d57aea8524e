"""Submit jobs to a Slurm cluster, by a job script made of a template and a site file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dtl.backends._slurm import commands
from dtl.backends._slurm.commands import FIXES, join_errors, rejection, run_command
from dtl.backends._slurm.job_script import SCRIPT, check_paths, log_files, render_script
from dtl.backends._slurm.site import Container, Site
from dtl.backends.base import Backend, Job, JobState
from dtl.core.errors import DtlError, RunFailed
from dtl.core.files import write_text

__all__ = ["Container", "Options", "Plugin"]


class Options(Site):
    """What a job script must contain on a cluster."""


class Plugin(Backend):
    """Job ids are Slurm's; that of a task of a job array is ARRAY_TASK."""

    options: Options

    def render(self, job: Job) -> str:
        return render_script(self.options, job)

    def check(self, job: Job) -> tuple[str, ...]:
        script = self.render(job)
        if self.options.account_needed and self.options.account is None:
            raise DtlError.of("--account", "this site needs an account", FIXES["account"])
        check_paths(job)
        shell = run_command(["bash", "-n"], script)
        if shell.returncode:
            problem = f"is not a valid shell script ({join_errors(shell.stderr)})"
            raise DtlError.of(SCRIPT, problem, "fix `setup` in the site file")
        done = run_command(["sbatch", "--test-only", *_dependency_flags(job)], script)
        if done.returncode == 0:
            return ()
        fault = rejection(done.stderr)
        unusable = commands.describe_unusable_nodes(
            self.options.partition,
            nodes=job.nodes,
            cpus=job.processes_per_node * self.options.cpus_per_task,
            words=fault.faults[0].problem,
        )
        if unusable is None:
            raise fault
        return (
            f"sbatch --test-only: {fault.faults[0].problem}: {unusable}, and the job may wait "
            "until they are usable again. Fix: see why with `sinfo --list-reasons` and "
            "`scontrol show reservation`, or choose another --partition",
        )

    def submit(self, job: Job) -> tuple[str, ...]:
        script = self.render(job)
        for folder in (job.run_folder, *job.array_runs):
            (folder / "logs").mkdir(parents=True, exist_ok=True)
            write_text(folder / SCRIPT, script, sync=True)
        ids: list[str] = []
        for _ in range(job.chain_length):
            # A later job waits for all before it: one of them may be cancelled while another runs.
            flags = [f"--dependency=afterany:{':'.join(ids)}"] if ids else _dependency_flags(job)
            done = run_command(["sbatch", "--parsable", *flags, str(job.run_folder / SCRIPT)])
            if done.returncode:
                for number in ids:
                    run_command(["scancel", number])
                raise rejection(done.stderr)
            ids.append(done.stdout.strip().partition(";")[0])
        return tuple(f"{ids[0]}_{task}" for task in range(len(job.array_runs))) or tuple(ids)

    def query_states(self, job_ids: Sequence[str]) -> dict[str, JobState]:
        return commands.query_states(job_ids)

    def cancel(self, job_id: str) -> None:
        state = self.query_states([job_id])[job_id].state
        if state == "ended":
            return
        flags = ["--batch", "--signal=TERM"] if state == "running" else []
        done = run_command(["scancel", *flags, job_id])
        if done.returncode:
            raise RunFailed.of("scancel", join_errors(done.stderr), FIXES["contact"])

    def log_files(self, job: Job) -> list[Path]:
        return log_files(job)


def _dependency_flags(job: Job) -> list[str]:
    if job.dependency is None:
        return []
    kind = "afterany" if job.dependency_may_fail else "afterok"
    return [f"--dependency={kind}:{job.dependency}", "--kill-on-invalid-dep=yes"]
