"""TLS on both sides: the contexts of upstream connections, and the certificate of a listener that may be replaced.

Contexts are built from files and built again when a file changes. TLS 1.2 is the least, certificates of upstreams are
always verified, and ALPN offers HTTP/1.1 only, which is what both sides speak.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from tidemill.kernel import Unavailable

_log = logging.getLogger(__name__)

_PROTOCOLS: Final = ["http/1.1"]

Mark = tuple[tuple[int, int, int], ...]
"""What files look like from outside (time of change, inode, size); another mark means another content."""


@dataclass(frozen=True, slots=True)
class Trust:
    """Whom an upstream connection trusts, and as whom it appears.

    Args:
        ca_file: PEM file of the authorities that may have signed the upstream's certificate, instead of the system's.
        certificate: PEM file of the client certificate (with its chain), where the upstream asks for one.
        key: PEM file of its private key, not encrypted; ``None`` means that it stands in ``certificate``.
    """

    ca_file: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The files it rests on."""
        return tuple(path for path in (self.ca_file, self.certificate, self.key) if path is not None)


class ClientContexts:
    """One context for each ``Trust``, so that handshakes are all that a connection costs."""

    def __init__(self) -> None:
        self._held: dict[Trust, tuple[Mark, ssl.SSLContext]] = {}

    def get(self, trust: Trust) -> ssl.SSLContext:
        """The context for connections of a trust, as its files are now.

        Raises:
            Unavailable: a file is missing or is not what it should be.
        """
        mark = _mark(trust.files)
        held = self._held.get(trust)
        if held is not None and held[0] == mark:
            return held[1]
        context = _client_context(trust)
        self._held[trust] = (mark, context)
        return context


class ServerTls:
    """The certificate of a listener. New handshakes take the newest good one; standing connections go on.

    ``context`` stays the same object; each handshake is moved to the context of the certificate that is valid then, so
    that no handshake ever sees half of a replacement.

    Args:
        certificate: PEM file: the server's certificate, then the chain to the authority.
        key: PEM file of the private key, not encrypted.

    Raises:
        Unavailable: a file is missing or broken, or the key belongs to another certificate.
    """

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._mark = _mark(self._files)
        self._newest = _server_context(certificate, key)
        self.context = _server_context(certificate, key)
        self.context.sni_callback = self._choose

    def follow(self) -> bool:
        """Look whether the files were replaced, and take them over if they are good. Returns whether they were."""
        try:
            mark = _mark(self._files)
        except Unavailable:
            return False  # taken away: what is held stays
        if mark == self._mark:
            return False
        self._mark = mark
        try:
            self._newest = _server_context(*self._files)
        except Unavailable as error:
            _log.error("The new certificate is refused, the one held stays: %s", error)
            return False
        _log.info("new certificate from %s", self._files[0])
        return True

    def _choose(self, handshake: ssl.SSLSocket | ssl.SSLObject, name: str | None, _: ssl.SSLContext) -> None:  # noqa: ARG002 - the library gives it
        handshake.context = self._newest


def tls_problem(error: ssl.SSLError) -> str:
    """What a failed handshake suffered from, in words for the operator."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not accepted: {error.verify_message or error.reason}"
    reason = (error.reason or "").replace("_", " ").lower()
    return f"the TLS handshake failed: {reason or error}"


def _mark(files: tuple[Path, ...]) -> Mark:
    try:
        stats = [path.stat() for path in files]
    except OSError as error:
        raise Unavailable(f"{error.filename} cannot be read: {error.strerror}") from error
    return tuple((stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats)


def _client_context(trust: Trust) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # verifies certificate and host name
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_PROTOCOLS)
    if trust.ca_file is None:
        context.load_default_certs()
    else:
        try:
            context.load_verify_locations(trust.ca_file)
        except (ssl.SSLError, OSError) as error:
            raise Unavailable(f"{trust.ca_file} holds no certificates of authorities: {error}") from error
    if trust.certificate is not None:
        _load(context, trust.certificate, trust.key)
    return context


def _server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(_PROTOCOLS)
    _load(context, certificate, key)
    return context


def _load(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, OSError, _Encrypted) as error:
        hint = "Give PEM files: the certificate with its chain, and its own private key, not encrypted."
        raise Unavailable(f"certificate {certificate} cannot be used: {error}", hint=hint) from error


class _Encrypted(Exception):
    """The private key asks for a password."""


def _no_password() -> NoReturn:
    raise _Encrypted("the private key is encrypted")
