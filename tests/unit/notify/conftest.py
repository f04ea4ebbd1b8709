from __future__ import annotations

from pathlib import Path

import pytest

from drvm.core.process import SystemProcesses
from tests.tls import make_certificates


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates for 127.0.0.1, and their authority."""
    directory = tmp_path_factory.mktemp("tls") / "pki"
    make_certificates(SystemProcesses(), directory, "127.0.0.1")
    return directory


@pytest.fixture
def trusted(authority: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, and this process trusts them."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "cacert.pem"))
    return authority


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
