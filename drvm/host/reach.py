"""Which libvirt URIs lead to another machine, and what to do when one leads nowhere; pure."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

_TRY = "try: virsh -c {uri} version"
_HINTS = (
    (
        r"host key verification failed",
        "log in once by ssh as the same user and compare the key's fingerprint",
    ),
    (
        r"permission denied|too many authentication failures|publickey",
        "a key of this user must be let in there: ssh-copy-id, and ssh-add where it has a "
        f"passphrase; {_TRY}",
    ),
    (
        r"certificate|tls|gnutls|x509",
        "certificates belong to /etc/pki/CA and /etc/pki/libvirt of both machines, with the name "
        "that the URI uses: https://libvirt.org/kbase/tlscerts.html",
    ),
    (
        r"authentication (failed|unavailable|cancelled)|polkit|sasl",
        f"this user is not let in by that libvirtd: see its auth_* settings; {_TRY}",
    ),
    (
        r"could not resolve|name or service|no address associated",
        "is the name of the machine right?",
    ),
    (
        r"refused|no route|timed out|unreachable|unable to connect",
        "does libvirtd listen there (listen_tcp, listen_tls and libvirtd --listen, or its sockets "
        f"under systemd), and does a firewall let it through? qemu+ssh needs neither; {_TRY}",
    ),
    (
        r"keepalive|end of file|reset|broken pipe|socket is closed",
        f"the machine, its libvirtd or the network between has gone away; {_TRY}",
    ),
)
_HERE = frozenset({None, "", "localhost", "127.0.0.1", "::1"})
_LOCAL_HINT = f"is libvirtd running, and may this user use it? {_TRY}"


def is_remote(uri: str) -> bool:
    """Whether it names a machine, be it this one: then nothing but libvirt may be used there."""
    return bool(urlsplit(uri).netloc)


def is_here(uri: str) -> bool:
    """Whether its images are files of this machine."""
    return urlsplit(uri).hostname in _HERE


def hint_for(uri: str, words: str) -> str:
    """What to do about a connection that libvirt could not make, or has lost, with these words."""
    if is_remote(uri):
        for pattern, hint in _HINTS:
            if re.search(pattern, words, re.IGNORECASE):
                return hint.format(uri=uri)
    return _LOCAL_HINT.format(uri=uri)
