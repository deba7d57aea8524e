"""The findings of `dtl doctor`."""

import pytest
from packaging.requirements import Requirement

from dtl.inspect import doctor


def states(findings):
    return {finding.text: finding.state for finding in findings}


def test_absent_package_is_missing():
    finding = doctor._check_package(Requirement("no-such-package>=1"))
    assert finding.state == "missing"
    assert str(finding).endswith(
        "no-such-package is not installed. Fix: pip install 'no-such-package>=1'"
    )


def test_package_of_another_version_is_missing():
    finding = doctor._check_package(Requirement("pytest>=1000"))
    assert finding.state == "missing"
    assert "(expected >=1000)" in finding.text
    assert finding.fix == "pip install 'pytest>=1000'"


def test_missing_compiler_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    findings = list(doctor._check_build_tools())
    assert findings[0].state == "missing"
    assert "ZeRO 0" in findings[0].text


def test_lock_of_a_killed_build_is_reported(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "py311" / "op").mkdir(parents=True)
    (tmp_path / "py311" / "op" / "lock").touch()
    lines = [str(finding) for finding in doctor._check_folders()]
    assert any("op/lock is held by a running build" in line for line in lines)


def test_cache_that_is_not_writable_is_missing(monkeypatch, tmp_path):
    file = tmp_path / "file"
    file.touch()
    monkeypatch.setenv("HF_HOME", str(file))
    finding = next(doctor._check_folders())
    assert finding.state == "missing"
    assert finding.fix == "set HF_HOME to a folder that you may write to"


@pytest.mark.parametrize(
    ("report", "state", "words"),
    [
        ("ImportError: broken", "missing", "torch cannot be imported (ImportError: broken)"),
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
def test_devices_are_those_that_torch_reports(monkeypatch, tmp_path, report, state, words):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(doctor, "_query_torch", lambda: report)
    (finding,) = doctor._check_devices()
    assert finding.state == state
    assert words in finding.text


def test_driver_without_a_gpu_for_torch_is_missing(monkeypatch, tmp_path):
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\n")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "this torch is for CPU only" in doctor._explain_missing_gpu(None).text
    assert "torch finds no GPU" in doctor._explain_missing_gpu("13.0").text
