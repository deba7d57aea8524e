"""Push: an export goes to the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtl.core.errors import DtlError, RunFailed
from dtl.run.folder import RunFolder

CARD = "README.md"
LOGIN = "`hf auth login`, or set HF_TOKEN to a token that may write"


def push(path: Path, repository: str, *, private: bool, revision: str | None) -> str:
    """Upload, in one commit, and return its address. `path`: a finished run, or an export.

    Raises DtlError for the user's faults, RunFailed where the hub fails.
    """
    from huggingface_hub import HfApi, get_token

    folder = _find_export(path)
    if get_token() is None:
        raise DtlError.of("dtl push", "there is no token for the hub", LOGIN)
    with _translate_hub_errors(repository):
        api = HfApi()
        # None: public, unless the organisation keeps its own private.
        name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise DtlError.of(
                "--private", f"{name} is there already, and public", "name another repository"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        done = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=f"Upload {_card_title(folder)}",
            ignore_patterns=[".*"],
        )
    return str(done.commit_url)


def _find_export(path: Path) -> Path:
    """The export itself, or that of a finished run. Raises DtlError."""
    run = RunFolder(path)
    if run.state == "interrupted":
        raise DtlError.of(
            str(path),
            "the run is not finished",
            f"`dtl resume {path}` finishes it, or name what `dtl export` has written",
        )
    folder = run.export if run.state == "finished" else path
    if not (folder / CARD).is_file():
        raise DtlError.of(
            str(path), f"there is no export with a {CARD}", "name a run folder, or an export"
        )
    return folder


def _card_title(folder: Path) -> str:
    """The heading of its card."""
    lines = (folder / CARD).read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), folder.name)


@contextmanager
def _translate_hub_errors(repository: str) -> Iterator[None]:
    """What it says, in one sentence, without what was sent to it."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as fault:
        reason = str(fault).splitlines()[0].rstrip(".")
        raise DtlError.of(repository, reason, "write it as owner/name") from None
    except HfHubHTTPError as fault:
        raise _http_error(repository, fault.response.status_code, fault.server_message) from None
    except OfflineModeIsEnabled:
        raise DtlError.of(
            repository, "the hub is switched off here (HF_HUB_OFFLINE)", "unset it, and push again"
        ) from None
    except ValueError as fault:  # such as a card that the hub does not take
        reason = " ".join(str(fault).split())[:300]
        raise DtlError.of(repository, f"the hub does not take it ({reason})", "fix it") from None
    except Exception as fault:
        if not _is_connection_error(fault):
            raise
        raise RunFailed.of(
            repository,
            f"the hub cannot be reached ({type(fault).__name__})",
            "check the network, and push again: what has arrived is not sent twice",
        ) from None


def _is_connection_error(fault: Exception) -> bool:
    """By name: the hub's library has changed what it speaks HTTP with, and may again."""
    kinds = {kind.__name__ for kind in type(fault).__mro__}
    return bool(kinds & {"TransportError", "ConnectionError"})


def _http_error(repository: str, status: int, said: str | None) -> DtlError:
    reason = f": {' '.join(said.split())[:200]}" if said else ""
    if status == 401:
        return DtlError.of(repository, f"the hub does not know the token (401{reason})", LOGIN)
    if status == 403:
        return DtlError.of(
            repository,
            f"the token may not write there (403{reason})",
            "take a token with the right to write, or a repository of your own",
        )
    if status == 404:
        return DtlError.of(
            repository, f"there is no such place for this token (404{reason})", "check the name"
        )
    return RunFailed.of(repository, f"the hub failed ({status}{reason})", "push again later")
