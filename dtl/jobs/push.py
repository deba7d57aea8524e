"""Upload an export to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dtl.core import hub
from dtl.core.errors import DtlError, RunFailed, shorten_message
from dtl.export.folder import MODEL_CARD
from dtl.models.peft.save_load import verify_export
from dtl.run.folder import RunFolder

LOGIN_FIX = "run `hf auth login`, or set HF_TOKEN to a token with write permission"


def push_export(path: Path, repository: str, *, private: bool, revision: str | None) -> str:
    """Upload an export in one commit, and return the address of the commit.

    `path`: a finished run, or an export. `revision`: branch; None: the main one. Raises DtlError
    for what the user can fix, and RunFailed where the Hub fails.
    """
    from huggingface_hub import HfApi, get_token

    # 1. Find the export and the token.
    folder = _find_export(path)
    if get_token() is None:
        raise DtlError.of("dtl push", "there is no token for the Hub", LOGIN_FIX)
    with _translate_hub_errors(repository):
        # 2. Create the repository and the branch where they do not exist.
        api = HfApi()
        # None: public, unless the organization's default is private.
        name = api.create_repo(repository, private=private or None, exist_ok=True).repo_id
        if private and not api.repo_info(name).private:
            raise DtlError.of(
                "--private", f"{name} exists already and is public", "use another repository"
            )
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
        # 3. Upload.
        commit = api.upload_folder(
            repo_id=name,
            folder_path=folder,
            revision=revision,
            commit_message=f"Upload {_card_title(folder)}",
            ignore_patterns=[".*"],
        )
    return str(commit.commit_url)


def _find_export(path: Path) -> Path:
    """Return the export itself, or that of a finished run. Raises DtlError."""
    run = RunFolder(path)
    if run.state == "interrupted":
        raise DtlError.of(
            str(path),
            "the run is not finished",
            f"finish it with `dtl resume {path}`, or use a folder that `dtl export` has written",
        )
    folder = run.export if run.state == "finished" else path
    if not (folder / MODEL_CARD).is_file():
        raise DtlError.of(
            str(path), f"there is no export with a {MODEL_CARD}", "use a run folder or an export"
        )
    verify_export(folder)
    return folder


def _card_title(folder: Path) -> str:
    """Return the first heading of the model card."""
    lines = (folder / MODEL_CARD).read_text(encoding="utf-8").splitlines()
    return next((line[2:] for line in lines if line.startswith("# ")), folder.name)


@contextmanager
def _translate_hub_errors(repository: str) -> Iterator[None]:
    """Raise errors of the Hub as DtlError or RunFailed, in one line and without the request."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as fault:
        reason = str(fault).splitlines()[0].rstrip(".")
        raise DtlError.of(repository, reason, "write it as owner/name") from None
    except HfHubHTTPError as fault:
        raise _http_error(repository, fault.response.status_code, fault.server_message) from None
    except OfflineModeIsEnabled:
        if hub.disabled_by_dtl:
            raise RunFailed.of(
                repository,
                "there is no connection to the Hub",
                "check the network and push again",
            ) from None
        raise DtlError.of(
            repository,
            "the Hub is disabled (HF_HUB_OFFLINE is set)",
            "unset HF_HUB_OFFLINE and push again",
        ) from None
    except ValueError as fault:  # such as an invalid model card
        reason = shorten_message(fault)
        raise DtlError.of(
            repository, f"the Hub rejects the upload ({reason})", "fix the files of the export"
        ) from None
    except Exception as fault:
        if not _is_connection_error(fault):
            raise
        raise RunFailed.of(
            repository,
            f"there is no connection to the Hub ({type(fault).__name__})",
            "check the network and push again; uploaded files are not sent twice",
        ) from None


def _is_connection_error(fault: Exception) -> bool:
    """Compare by name, because huggingface_hub has changed its HTTP library before."""
    names = {cls.__name__ for cls in type(fault).__mro__}
    return bool(names & {"TransportError", "ConnectionError"})


def _http_error(repository: str, status: int, message: str | None) -> DtlError:
    reason = f": {shorten_message(message)}" if message else ""
    if status == 401:
        return DtlError.of(repository, f"the Hub rejects the token (401{reason})", LOGIN_FIX)
    if status == 403:
        return DtlError.of(
            repository,
            f"the token has no write permission (403{reason})",
            "use a token with write permission, or a repository of your own",
        )
    if status == 404:
        return DtlError.of(
            repository, f"the repository was not found (404{reason})", "check its name"
        )
    return RunFailed.of(repository, f"the Hub failed ({status}{reason})", "push again later")
