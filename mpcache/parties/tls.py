"""Certificates and TLS 1.3 contexts: who may speak as which party.

A run trusts one certificate authority and nobody else. Its private key signs one certificate for
each party and is then forgotten, so that nobody can join later. A certificate names its party as
``party-0.mpcache`` in the subject alternative name; that name, not the host, is what is checked.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mpcache.errors import UsageError

_DOMAIN = ".mpcache"
_SKEW = datetime.timedelta(minutes=5)  # hosts' clocks may differ by this much


@dataclass(frozen=True)
class Identity:
    """Paths of the PEM files with which one party proves who it is."""

    ca: Path
    cert: Path
    key: Path

    @staticmethod
    def of(folder: Path | str, rank: int) -> Identity:
        """The files that `make_keys` wrote to `folder` for party `rank`."""
        party = Path(folder) / f"party-{rank}"
        return Identity(
            Path(folder) / "ca.pem", party.with_suffix(".pem"), party.with_suffix(".key")
        )


def certificate_name(rank: int) -> str:
    """The name that party `rank`'s certificate carries."""
    return f"party-{rank}{_DOMAIN}"


def make_keys(
    folder: Path | str,
    parties: int,
    hosts: Sequence[str] = (),
    days: float = 30.0,
) -> list[Identity]:
    """Write a throw-away authority and a certificate with its key for each party.

    Args:
        folder: receives ``ca.pem`` and ``party-R.pem``, ``party-R.key`` (mode 0600) for each party.
        parties: how many parties.
        hosts: one host name or address a party, to be added to its certificate; or none.
        days: how long the certificates are valid.

    Raises:
        UsageError: a file exists already, or the arguments make no sense.
    """
    folder = Path(folder)
    if parties < 1 or days <= 0 or (hosts and len(hosts) != parties):
        raise UsageError(
            f"cannot make keys for {parties} parties, {len(hosts)} hosts, {days:g} days:"
            " give at least one party, one host a party or none, and a positive number of days"
        )
    identities = [Identity.of(folder, rank) for rank in range(parties)]
    for path in [identities[0].ca, *(p for i in identities for p in (i.cert, i.key))]:
        if path.exists():
            raise UsageError(f"{path} exists already: give an empty folder, or remove it first")
    now = datetime.datetime.now(datetime.UTC)
    valid = (now - _SKEW, now + datetime.timedelta(days=days))
    ca_key = ec.generate_private_key(ec.SECP256R1())
    ca = _authority(ca_key, valid)
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(identities[0].ca, ca.public_bytes(serialization.Encoding.PEM), 0o644)
        for rank, identity in enumerate(identities):
            key = ec.generate_private_key(ec.SECP256R1())
            cert = _issue(ca, ca_key, key, rank, hosts[rank] if hosts else "", valid)
            _write(identity.cert, cert.public_bytes(serialization.Encoding.PEM), 0o644)
            _write(identity.key, _pem(key), 0o600)
    except OSError as error:
        raise UsageError(f"cannot write keys to {folder}: {error.strerror}") from error
    return identities


def _write(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


Validity = tuple[datetime.datetime, datetime.datetime]


def _usage(signs: bool) -> x509.KeyUsage:
    """An authority's key signs certificates; a party's key signs handshakes."""
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _blank(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, valid: Validity
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey, valid: Validity) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "mpcache run authority")])
    return (
        _blank(name, name, key.public_key(), valid)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .sign(key, hashes.SHA256())
    )


def _issue(
    ca: x509.Certificate,
    ca_key: ec.EllipticCurvePrivateKey,
    key: ec.EllipticCurvePrivateKey,
    rank: int,
    host: str,
    valid: Validity,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, certificate_name(rank))])
    names: list[x509.GeneralName] = [x509.DNSName(certificate_name(rank))]
    if host:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
    return (
        _blank(subject, ca.subject, key.public_key(), valid)
        .add_extension(issuer_key, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def server_context(identity: Identity) -> ssl.SSLContext:
    """For the party that is connected to. TLS 1.3 only, the peer's certificate required.

    Raises:
        UsageError: a file is missing or is not what it should be.
    """
    context = _context(ssl.PROTOCOL_TLS_SERVER, identity)
    context.num_tickets = 0  # no resumption: tickets would lie unread in the peer's socket
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For the party that connects. Raises like `server_context`."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    for path in (identity.ca, identity.cert, identity.key):
        if not path.is_file():
            raise UsageError(f"no file {path}: make certificates with `mpcache keys`")
    context = ssl.SSLContext(protocol)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # the party's name is checked instead, see `check_name`
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_STRICT
    try:
        context.load_verify_locations(identity.ca)
        # A password is never asked for on the terminal: an encrypted key fails instead.
        context.load_cert_chain(identity.cert, identity.key, password=lambda: b"")
    except (ssl.SSLError, OSError) as error:
        raise UsageError(
            f"{identity.cert}, {identity.key} and {identity.ca} do not make an identity"
            f" ({_reason(error)}): make certificates with `mpcache keys`"
        ) from error
    return context


def certified_names(sock: ssl.SSLSocket) -> list[str]:
    """The party names in the peer's certificate, such as ``["party-1.mpcache"]``."""
    certificate = sock.getpeercert() or {}
    names = cast(tuple[tuple[str, str], ...], certificate.get("subjectAltName", ()))
    return [value for kind, value in names if kind == "DNS" and value.endswith(_DOMAIN)]


def check_name(sock: ssl.SSLSocket, ranks: Sequence[int]) -> str:
    """Why the peer's certificate is none of `ranks`' certificates; empty if it is one."""
    wanted = [certificate_name(rank) for rank in ranks]
    found = certified_names(sock)
    if len(found) == 1 and found[0] in wanted:
        return ""
    return f"the certificate is for {', '.join(found) or 'no party'}, not for {' or '.join(wanted)}"


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)


def explain(error: ssl.SSLError) -> str:
    """One sentence on a failed TLS handshake, from this party's point of view."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused: {error.verify_message}"
    reason = _reason(error)
    if "ALERT" in reason:
        words = reason.partition("ALERT_")[2].lower().replace("_", " ")
        return f"it refused this party's certificate or TLS version: {words}"
    if "UNEXPECTED_EOF" in reason or "EOF" in reason:
        return "the connection ended during the TLS handshake"
    return f"it does not speak TLS 1.3 ({reason}): is tls off at one end?"
