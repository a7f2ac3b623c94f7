"""TLS is 1.2 or newer, and an engine whose certificate is not accepted gets no request."""

import pathlib
import ssl

from proxy.errors import ConfigError


def server_context(cert: pathlib.Path, key: pathlib.Path) -> ssl.SSLContext:
    """The TLS context to serve https with. Raises ConfigError naming the flag of a file that is no use."""
    for flag, path in (("--tls-cert", cert), ("--tls-key", key)):
        _check_readable(flag, path)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if "-----BEGIN CERTIFICATE-----" not in _text(cert):
        raise ConfigError(f"--tls-cert {cert}: there is no PEM certificate in it")
    try:
        context.load_cert_chain(cert, key, password="")  # a passphrase would be asked for on the terminal
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError(f"--tls-key {key}: it is not the key of --tls-cert {cert}") from None
        if error.reason is None or "ENCRYPTED" in _text(key):
            raise ConfigError(
                f"--tls-key {key}: the key has a passphrase; write one without: openssl pkey -in KEY -out NEW"
            ) from None
        if "-----BEGIN" in _text(key) and "PRIVATE KEY-----" in _text(key):
            raise ConfigError(
                f"--tls-cert {cert}, --tls-key {key}: cannot be used ({error.reason});"
                " they must be PEM, the key without a passphrase"
            ) from None
        raise ConfigError(f"--tls-key {key}: there is no PEM private key in it") from None
    return context


def engine_context(authorities: pathlib.Path | None) -> ssl.SSLContext:
    """The TLS context for https engines. Raises ConfigError naming `--engine-ca` if the file is no use."""
    if authorities is not None:
        _check_readable("--engine-ca", authorities)
    try:
        context = ssl.create_default_context(cafile=authorities)
    except ssl.SSLError:
        raise ConfigError(f"--engine-ca {authorities}: there is no PEM certificate in it") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


def _check_readable(flag: str, path: pathlib.Path) -> None:
    try:
        path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{flag} {path}: {error.strerror}") from None


def _text(path: pathlib.Path) -> str:
    return path.read_text(encoding="latin-1")
