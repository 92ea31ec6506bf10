"""Certificates as PEM texts: an authority's own, and those that it makes. Pure but for chance and the date.

They are good for long: what one opens is a single entry, which is gone when its job is.
"""

from __future__ import annotations

import datetime
import secrets

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

LASTING = datetime.timedelta(days=3650)
EARLIER = datetime.timedelta(days=2)
"""Before now a certificate begins to hold: the clocks of sites may be wrong."""


def make_authority() -> str:
    """A new authority: its key and its certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = _begin(f"ghv {secrets.token_hex(8)}", None, key)
    made = made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return _key_text(key) + _pem(made.sign(key, hashes.SHA256()))


def certificate_of(authority: str) -> str:
    """The authority's certificate alone. Raises ValueError: it is none."""
    return _pem(x509.load_pem_x509_certificate(authority.encode()))


def issue(authority: str, name: str, *, server: bool) -> tuple[str, str]:
    """A certificate of the authority's, and its key: for a server that is called so, or for an entry, whose pilot goes
    to servers, and may have pilots of other entries come to it. No server is known by an entry's.

    Raises:
        ValueError: what is said to be an authority is none.
    """
    issuer_key = serialization.load_pem_private_key(authority.encode(), None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the authority's key is of another kind than we make")
    issuer = x509.load_pem_x509_certificate(authority.encode()).subject
    key = ec.generate_private_key(ec.SECP256R1())
    uses = [ExtendedKeyUsageOID.SERVER_AUTH] + [ExtendedKeyUsageOID.CLIENT_AUTH] * (not server)
    made = _begin(name, issuer, key)
    made = made.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    made = made.add_extension(x509.ExtendedKeyUsage(uses), critical=True)
    if server:
        made = made.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
    return _pem(made.sign(issuer_key, hashes.SHA256())), _key_text(key)


def _begin(name: str, issuer: x509.Name | None, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
    """What all certificates have. An entry's name may be longer than the 64 characters that X.509 foresees for one."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name, _validate=len(name) <= 64)])
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer or subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - EARLIER)
        .not_valid_after(now + LASTING)
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _key_text(key: ec.EllipticCurvePrivateKey) -> str:
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()
