"""What the doctor finds."""

import pytest
from packaging.requirements import Requirement

from dtl.inspect import doctor


def states(findings):
    return {finding.what: finding.state for finding in findings}


def test_a_package_that_is_absent_is_missing():
    finding = doctor._package(Requirement("no-such-package>=1"))
    assert finding.state == "missing"
    assert str(finding).endswith(
        "no-such-package is not installed; pip install 'no-such-package>=1'"
    )


def test_a_package_of_another_version_is_missing():
    finding = doctor._package(Requirement("pytest>=1000"))
    assert finding.state == "missing"
    assert "but dtl needs >=1000" in finding.what
    assert finding.fix == "pip install 'pytest>=1000'"


def test_a_missing_compiler_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    findings = list(doctor._builders())
    assert findings[0].state == "missing"
    assert "ZeRO 0" in findings[0].what


def test_a_lock_of_a_killed_build_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311" / "op").mkdir(parents=True)
    (tmp_path / "py311" / "op" / "lock").touch()
    told = [str(finding) for finding in doctor._folders()]
    assert any("op/lock is held by a build" in line for line in told)


def test_a_cache_that_cannot_be_written_is_missing(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HF_HOME", str(file))
    finding = next(doctor._folders())
    assert finding.state == "missing"
    assert finding.fix == "set HF_HOME to a folder that you may write to"


@pytest.mark.parametrize(
    ("seen", "state", "words"),
    [
        ("ImportError: broken", "missing", "torch does not start (ImportError: broken)"),
        ({"cuda": None, "cuda_home": None, "devices": []}, "note", "trains on the CPU"),
        (
            {
                "cuda": "13.0",
                "cuda_home": "/usr/local/cuda",
                "devices": [{"name": "H200", "memory": 140 * 1024**3, "bf16": True}],
            },
            "ok",
            "GPU 0: H200, 140 GiB, bf16",
        ),
    ],
)
def test_devices(monkeypatch, tmp_path, seen, state, words):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_seen_by_torch", lambda: seen)
    (finding,) = doctor._devices()
    assert finding.state == state
    assert words in finding.what


def test_a_driver_without_a_gpu_for_torch_is_missing(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "this torch is for CPU only" in doctor._no_gpu(None).what
    assert "torch sees no GPU" in doctor._no_gpu("13.0").what
