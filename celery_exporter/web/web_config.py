"""`--web.config.file` in the format of Prometheus' exporter-toolkit: from text to `WebConfig`. Pure.

Format: https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md As there, unknown
and duplicate keys are errors. The tests compare the result with `promtool check web-config`; a comment gives
the reason where this parser rejects more.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

import msgspec
from msgspec import Struct, field

from celery_exporter.errors import BadSettingError
from celery_exporter.runtime.yaml_tree import InvalidYamlError, load_yaml

Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
Switch = Literal["true", "True", "yes", "on", "false", "False", "no", "off"]
ClientAuth = Literal[
    "NoClientCert",
    "RequestClientCert",
    "RequireClientCert",  # the old name of the next value
    "RequireAnyClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
#: At most one: Python can set one curve, or leave the choice and the order to OpenSSL.
Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]
#: Go's names of the ciphers that it considers secure (tls.CipherSuites).
Cipher = Literal[
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
]

_REQUIRING = frozenset({"RequireClientCert", "RequireAnyClientCert", "RequireAndVerifyClientCert"})
_VERIFYING = _REQUIRING | {"VerifyClientCertIfGiven"}
#: The default of Go.
_DEFAULT_MIN_VERSION: Version = "TLS12"
_BCRYPT = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class BadWebConfigError(BadSettingError):
    """The file, or a file that it names, is invalid; the text is one line without secrets."""


class TLS(Struct, frozen=True, forbid_unknown_fields=True):
    """`tls_server_config`: inline PEM texts, or the paths of PEM files, which take precedence."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: ClientAuth | Literal[""] = ""
    client_allowed_sans: tuple[str, ...] | None = None
    min_version: Version = _DEFAULT_MIN_VERSION
    max_version: Version = "TLS13"
    cipher_suites: tuple[Cipher, ...] = ()
    prefer_server_cipher_suites: Switch = "true"
    curve_preferences: tuple[Curve, ...] = ()

    @property
    def enabled(self) -> bool:
        """Return whether the listener uses TLS.

        As in the exporter-toolkit, a minimum version alone does not enable it.
        """
        return any((self.cert, self.cert_file, self.key, self.key_file, self.has_ca, self.client_auth_type))

    @property
    def has_ca(self) -> bool:
        """Return whether there is a CA for client certificates."""
        return bool(self.client_ca or self.client_ca_file)

    @property
    def verifies_clients(self) -> bool:
        """Return whether clients are asked for a certificate.

        With RequestClientCert they are not, because that certificate is not verified anyway.
        """
        return self.client_auth_type in _VERIFYING

    @property
    def requires_certificate(self) -> bool:
        """Return whether a client without a certificate is rejected."""
        return self.client_auth_type in _REQUIRING

    @property
    def prefers_own_ciphers(self) -> bool:
        """Return whether the server's order of ciphers takes precedence over the client's."""
        return self.prefer_server_cipher_suites in ("true", "True", "yes", "on")


class Headers(
    Struct,
    frozen=True,
    forbid_unknown_fields=True,
    rename={
        "csp": "Content-Security-Policy",
        "frames": "X-Frame-Options",
        "types": "X-Content-Type-Options",
        "xss": "X-XSS-Protection",
        "hsts": "Strict-Transport-Security",
    },
):
    """The headers that can be set. An empty one is not sent."""

    csp: str = ""
    frames: Literal["deny", "sameorigin", ""] = ""
    types: Literal["nosniff", ""] = ""
    xss: str = ""
    hsts: str = ""


class HTTP(Struct, frozen=True, forbid_unknown_fields=True):
    """`http_server_config`. This server has no HTTP/2; ALPN announces HTTP/1.1 only."""

    http2: Switch = "true"
    headers: Headers = field(default_factory=Headers)


class WebConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `rate_limit` is not supported: other clients could use up the limit of Prometheus."""

    tls_server_config: TLS = field(default_factory=TLS)
    http_server_config: HTTP = field(default_factory=HTTP)
    basic_auth_users: dict[str, str] = field(default_factory=dict)


def parse(text: bytes) -> WebConfig:
    """Return the configuration of a file's content. Raises BadWebConfigError."""
    if not text.strip():
        # The file is probably being written in place. Accepting it would disable authentication.
        raise BadWebConfigError("the file is empty; for a listener without authentication write {}")
    try:
        tree = load_yaml(text)
    except InvalidYamlError as error:
        raise BadWebConfigError(str(error)) from None
    try:
        config = msgspec.convert({} if tree is None else tree, WebConfig)
    except msgspec.ValidationError as error:
        raise BadWebConfigError(_message(str(error))) from None
    _check_tls(config.tls_server_config)
    for name, value in headers(config).items():
        if not (value.isascii() and value.isprintable()):
            raise BadWebConfigError(
                f"http_server_config.headers.{name}: invalid value; expected one line of printable ASCII"
            )
    for user, hashed in config.basic_auth_users.items():
        if not _BCRYPT.fullmatch(hashed):
            # The value is not in the message: it may be the password itself.
            raise BadWebConfigError(
                f"basic_auth_users: no bcrypt hash for {user!r}; create one with htpasswd -nBC 10 USER"
            )
    return config


def headers(config: WebConfig) -> dict[str, str]:
    """Return the headers of each answer."""
    values: dict[str, str] = msgspec.to_builtins(config.http_server_config.headers)
    return {name: value.strip() for name, value in values.items() if value.strip()}


def _check_tls(tls: TLS) -> None:
    """Raise BadWebConfigError for fields that contradict each other, or that this server cannot apply."""
    if not tls.enabled:
        return
    for name in ("cert", "key"):
        if not (getattr(tls, name) or getattr(tls, f"{name}_file")):
            raise BadWebConfigError(f"tls_server_config: missing {name} or {name}_file")
    if tls.has_ca and tls.client_auth_type in ("", "NoClientCert"):
        raise BadWebConfigError(
            "tls_server_config: client_ca_file requires client_auth_type, such as RequireAndVerifyClientCert"
        )
    if tls.client_allowed_sans is not None and not tls.requires_certificate:
        raise BadWebConfigError(
            "tls_server_config: client_allowed_sans requires client_auth_type: RequireAndVerifyClientCert"
        )
    if tls.client_auth_type in ("RequireClientCert", "RequireAnyClientCert") and not tls.has_ca:
        # Without a CA, any certificate would be accepted. Python's ssl always verifies certificates.
        raise BadWebConfigError(
            f"tls_server_config.client_auth_type: {tls.client_auth_type} requires client_ca_file, "
            "because certificates are always verified"
        )
    if tls.min_version > tls.max_version:  # the names sort by version
        raise BadWebConfigError(
            f"tls_server_config: min_version {tls.min_version} is above max_version {tls.max_version}"
        )
    if len(tls.curve_preferences) > 1:
        raise BadWebConfigError(
            f"tls_server_config.curve_preferences: got {len(tls.curve_preferences)} curves; "
            "expected one, or none for OpenSSL's default order"
        )


_EXPECTED: dict[str, tuple[str, ...]] = {
    "": WebConfig.__struct_encode_fields__,
    "tls_server_config": TLS.__struct_encode_fields__,
    "http_server_config": HTTP.__struct_encode_fields__,
    "headers": Headers.__struct_encode_fields__,
    "min_version": get_args(Version),
    "max_version": get_args(Version),
    "client_auth_type": get_args(ClientAuth),
    "cipher_suites": get_args(Cipher),
    "curve_preferences": get_args(Curve),
    "http2": ("true", "false"),
    "prefer_server_cipher_suites": ("true", "false"),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-Content-Type-Options": ("nosniff",),
}
_REPLACEMENTS = {
    "Object contains unknown field": "unknown key",
    "Invalid enum value": "got",
    "Expected `object`": "expected a mapping",
    "got `object`": "got a mapping",
    "Expected `array`": "expected a list",
    "got `array`": "got a list",
}


def _message(error: str) -> str:
    """Return msgspec's message, with the key first and the expected values last."""
    problem, _, where = error.partition(" - at ")
    path = re.sub(r"[`$]|\[\d+\]", "", where).strip(".")
    expected = ", ".join(_EXPECTED.get(path.rpartition(".")[2], ()))
    for old, new in _REPLACEMENTS.items():
        problem = problem.replace(old, new)
    return f"{path or 'the file'}: {problem}" + (f"; expected {expected}" if expected else "")
