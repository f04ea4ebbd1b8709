"""Mail: plain text by SMTP, encrypted unless the config says otherwise."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import re
import smtplib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from pathlib import Path
from typing import Literal

from drvm.core.errors import NotifyFailed
from drvm.core.private import read_private_lines
from drvm.core.redact import redacted
from drvm.core.text import printable
from drvm.notify.model import Message

STEP_S = 20.0
LIMIT_S = 60.0
"""For one answer of the server, and for the whole."""

_SUBJECT_CHARS = 180
_NO_HOST = re.compile(r"[^A-Za-z0-9.-]")


@dataclass(frozen=True, slots=True)
class Mail:
    """``security``: with ``starttls`` a server that does not offer it gets nothing. The password is
    read anew each time; without ``user`` there is no login. Addresses are plain ones."""

    name: str
    server: str
    port: int
    security: Literal["starttls", "tls", "none"]
    sender: str
    to: tuple[str, ...]
    user: str | None = None
    password_file: Path | None = None
    step_s: float = STEP_S
    limit_s: float = LIMIT_S

    def send(self, message: Message) -> None:
        where = f"the mail server {printable(self.server, 100)}"
        try:
            left_out = self._hand_over(compose(message, self.sender, self.to), message.host)
        except smtplib.SMTPNotSupportedError:
            raise NotifyFailed(
                f"{where} does not offer what is asked of it (STARTTLS, or a login)",
                hint="see notify, smtp: security, user",
                refused=True,
            ) from None
        except smtplib.SMTPRecipientsRefused:
            raise NotifyFailed(f"{where} takes none of the addresses", refused=True) from None
        except smtplib.SMTPResponseException as error:
            words = error.smtp_error
            text = words.decode("utf-8", "backslashreplace") if isinstance(words, bytes) else words
            reason = redacted(printable(text, 200))
            refused = 500 <= error.smtp_code < 600
            raise NotifyFailed(f"{where}: {error.smtp_code} {reason}", refused=refused) from None
        except (smtplib.SMTPException, OSError, ValueError) as error:
            reason = redacted(printable(str(error) or type(error).__name__, 200))
            raise NotifyFailed(f"{where} can't be told: {reason}") from None
        if left_out:
            raise NotifyFailed(f"{where} did not take it for {', '.join(left_out)}", refused=True)

    def _hand_over(self, mail: EmailMessage, host: str) -> list[str]:
        """Whom the server did not take it for, where it did for others."""
        login = self._login()
        context = ssl.create_default_context()
        own_name = _NO_HOST.sub("", host) or "localhost"
        at_once = context if self.security == "tls" else None
        with contextlib.ExitStack() as stack:

            def connected(link: socket.socket) -> None:
                stack.enter_context(_cut_off(link, self.limit_s))

            client = stack.enter_context(_Client(self, own_name, at_once, connected))
            if self.security == "starttls":
                client.starttls(context=context)
            if login is not None:
                client.login(*login)
            return sorted(client.send_message(mail))

    def _login(self) -> tuple[str, str] | None:
        if self.user is None or self.password_file is None:
            return None
        hint = f"one line in a file that only its owner can read: chmod 600 {self.password_file}"
        return self.user, read_private_lines(
            self.password_file, f"the password file {self.password_file}", hint=hint
        )[0]


def compose(message: Message, sender: str, to: tuple[str, ...]) -> EmailMessage:
    """No line of it can become a header of its own: all that comes from outside is one line of
    printable characters first."""
    mail = EmailMessage()
    mail["From"] = printable(sender)
    mail["To"] = ", ".join(printable(address) for address in to)
    mail["Subject"] = printable(message.title(), _SUBJECT_CHARS)
    mail["Date"] = email.utils.format_datetime(message.at)
    host = _NO_HOST.sub("", message.host) or "localhost"
    mail["Message-ID"] = f"<{message.id}@{host}>"
    alarm = hashlib.sha256(message.key.encode("utf-8", "backslashreplace")).hexdigest()[:32]
    mail["References"] = f"<drvm.{alarm}@{host}>"  # so that an alarm is one conversation
    mail["Auto-Submitted"] = "auto-generated"
    mail.set_content(printable(message.body(), 10_000, lines=True))
    return mail


class _Client(smtplib.SMTP):
    """``connected`` is told before a byte is read: the handshake and the greeting may last for ever
    as well. ``context``: encrypted from the first byte on."""

    def __init__(
        self,
        way: Mail,
        own_name: str,
        context: ssl.SSLContext | None,
        connected: Callable[[socket.socket], None],
    ) -> None:
        self._context, self._connected = context, connected
        super().__init__(way.server, way.port, own_name, timeout=way.step_s)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        """As ``smtplib.SMTP_SSL`` overrides it."""
        link = socket.create_connection((host, port), timeout)
        self._connected(link)
        if self._context is None:
            return link
        return self._context.wrap_socket(link, server_hostname=host)


@contextlib.contextmanager
def _cut_off(link: socket.socket, limit_s: float) -> Iterator[None]:
    """A server that gives a byte now and then would hold us for ever. The connection is known by a
    descriptor of our own, since encryption takes the first one over."""
    own = link.dup()

    def cut() -> None:
        with contextlib.suppress(OSError):
            own.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(limit_s, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        own.close()
