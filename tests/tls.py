"""Certificates for a libvirtd of the tests, and for its client."""

from __future__ import annotations

from pathlib import Path

from drvm.core.process import Processes

_CA = "cn = tests of drvm\nca\ncert_signing_key\n"
_SERVER = "cn = second\nip_address = {address}\ntls_www_server\nsigning_key\nencryption_key\n"
_CLIENT = "cn = tests of drvm\ntls_www_client\nsigning_key\nencryption_key\n"


def make_certificates(processes: Processes, directory: Path, address: str) -> None:
    """In ``directory``: ``cacert.pem``, ``servercert.pem``, ``serverkey.pem`` and the same of a
    client, under the names by which libvirt's ``pkipath`` finds them."""
    directory.mkdir(mode=0o700)
    _make(processes, directory, "ca", _CA, signed=False)
    _make(processes, directory, "server", _SERVER.format(address=address))
    _make(processes, directory, "client", _CLIENT)


def _make(
    processes: Processes, directory: Path, name: str, template: str, *, signed: bool = True
) -> None:
    key, certificate = (str(directory / f"{name}{kind}.pem") for kind in ("key", "cert"))
    described = directory / f"{name}.template"
    described.write_text(template)
    argv = [
        "certtool",
        "--generate-privkey",
        "--key-type",
        "rsa",
        "--bits",
        "2048",
        "--outfile",
        key,
    ]
    processes.run(argv, timeout_s=60)
    argv = ["certtool", "--generate-certificate" if signed else "--generate-self-signed"]
    argv += ["--load-privkey", key, "--template", str(described), "--outfile", certificate]
    if signed:
        authority = directory / "cacert.pem", directory / "cakey.pem"
        argv += ["--load-ca-certificate", str(authority[0]), "--load-ca-privkey", str(authority[1])]
    processes.run(argv, timeout_s=60)
