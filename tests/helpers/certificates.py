"""Certificates of a test's own authority, and a TLS front for an engine that speaks none itself."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import pathlib
import ssl
from collections.abc import AsyncIterator
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.tasks import TaskOwner

_DAY = dt.timedelta(days=1)


class Files(NamedTuple):
    """A certificate and its key, as files."""

    cert: pathlib.Path
    key: pathlib.Path


class Authority:
    """Certifies the names it is told, in files of one folder."""

    def __init__(self, folder: pathlib.Path, name: str = "authority") -> None:
        self._folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = self._builder(self._name, self._key, ca=True, days=1).sign(self._key, hashes.SHA256())
        self.file = folder / f"{name}.pem"
        self.file.write_bytes(made.public_bytes(serialization.Encoding.PEM))

    def certify(self, *names: str, file: str = "server", days: int = 1, passphrase: bytes = b"") -> Files:
        """A certificate for addresses and host names; it has expired if `days` is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, file)])
        made = (
            self._builder(subject, key, ca=False, days=days)
            .add_extension(x509.SubjectAlternativeName([_general(name) for name in names]), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        files = Files(self._folder / f"{file}.crt", self._folder / f"{file}.key")
        files.cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        files.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(passphrase)
                if passphrase
                else serialization.NoEncryption(),
            )
        )
        return files

    def client(self) -> ssl.SSLContext:
        """The context of a client that trusts this authority alone."""
        return ssl.create_default_context(cafile=self.file)

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *, ca: bool, days: int
    ) -> x509.CertificateBuilder:
        now = dt.datetime.now(dt.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 10 * _DAY)
            .not_valid_after(now + days * _DAY)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=ca,
                    crl_sign=ca,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
        )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


class Front(NamedTuple):
    """A TLS front: where it listens, and how many connections passed their handshake."""

    address: str
    accepted: list[str]


@contextlib.asynccontextmanager
async def tls_front(address: str, files: Files) -> AsyncIterator[Front]:
    """Speak TLS on a port of its own, and pass on what is said to `address`."""
    host, _, port = address.rpartition(":")
    pipes = TaskOwner("tls front")
    accepted: list[str] = []
    writers: list[asyncio.StreamWriter] = []

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def front(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(address)
        writers.append(writer)
        with contextlib.suppress(ConnectionError):
            to_engine = await asyncio.open_connection(host, int(port))
            writers.append(to_engine[1])
            pipes.create(pipe(reader, to_engine[1]), name="up")
            pipes.create(pipe(to_engine[0], writer), name="down")

    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*files)
    server = await asyncio.start_server(front, "127.0.0.1", 0, ssl=context)
    try:
        yield Front(f"127.0.0.1:{server.sockets[0].getsockname()[1]}", accepted)
    finally:
        server.close()
        await pipes.close()
        for writer in writers:
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
                async with asyncio.timeout(5):
                    await writer.wait_closed()
