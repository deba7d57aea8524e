"""Read site files: the backend of a cluster and its options."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from dtl.backends.base import Backend, SiteOptions
from dtl.config import registry
from dtl.config.fault_messages import describe_faults
from dtl.config.yaml_document import read_yaml
from dtl.core.errors import DtlError, near
from dtl.core.package_files import find_package_folder


def list_sites() -> tuple[str, ...]:
    """Return the names of the sites that dtl ships."""
    return tuple(
        sorted(file.stem for file in (find_package_folder("slurm") / "clusters").glob("*.yaml"))
    )


def read_site(site: str) -> SiteOptions:
    """Return the options of a shipped site by its name, or of a file: those of its backend.

    Raises DtlError with all faults of the file.
    """
    path = Path(site)
    if path.suffix not in (".yaml", ".yml"):
        if site not in list_sites():
            fix = near(site, list_sites()) or f"choose one of: {', '.join(list_sites())}"
            raise DtlError.of("--cluster", f"no site is named '{site}'", f"{fix}, or use a file")
        path = find_package_folder("slurm") / "clusters" / f"{site}.yaml"
    if not path.is_file():
        raise DtlError.of("--cluster", f"there is no file {path}", "use a site or a YAML file")
    record = _load_record(path)
    document = read_yaml(path, record=record)
    try:
        options = record.model_validate(document.values)
    except ValidationError as error:
        raise DtlError(*document.faults, *describe_faults(error, document, str(path))) from None
    if document.faults:
        raise DtlError(*document.faults)
    return options


def open_backend(options: SiteOptions) -> Backend:
    """Return the backend of a site."""
    backend: Backend = registry.load("backends", options.backend).Plugin(options)
    return backend


def _load_record(path: Path) -> type[SiteOptions]:
    """Return the record of the options of the backend that a site file names."""
    values = read_yaml(path, record=SiteOptions).values
    name = str(values.get("backend") or SiteOptions.model_fields["backend"].default)
    location = f"{path}: backend"
    if name not in registry.list_names("backends"):
        raise DtlError.of(location, *registry.describe_unknown("backends", name))
    record: type[SiteOptions] = registry.load_options("backends", name)
    if not issubclass(record, SiteOptions):
        raise DtlError.of(location, f"backend '{name}' has no site files", "choose slurm")
    return record
