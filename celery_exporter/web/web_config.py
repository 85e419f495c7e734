"""`--web.config.file`: the format of Prometheus' exporter-toolkit, from text to `WebConfig`. Pure.

https://github.com/prometheus/exporter-toolkit/blob/master/docs/web-configuration.md says what is in it.
As there, keys that nobody knows, and keys that stand twice, are errors. `promtool check web-config` is the
oracle of the tests; where we take less than it does, the reason stands here.
"""

from __future__ import annotations

import re
from typing import Any, Literal, get_args

import msgspec
import yaml
from msgspec import Struct, field

from celery_exporter.errors import BadSettingError

Version = Literal["TLS10", "TLS11", "TLS12", "TLS13"]
Switch = Literal["true", "True", "yes", "on", "false", "False", "no", "off"]
ClientAuth = Literal[
    "NoClientCert",
    "RequestClientCert",
    "RequireClientCert",  # an old name of the next
    "RequireAnyClientCert",
    "VerifyClientCertIfGiven",
    "RequireAndVerifyClientCert",
]
#: One only: Python hands OpenSSL one curve, or leaves the choice, and the order, to it.
Curve = Literal["CurveP256", "CurveP384", "CurveP521", "X25519"]
#: Go's names of those that it does not call insecure (tls.CipherSuites).
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
#: Go's default; a file that wants less has to say so.
_OLDEST: Version = "TLS12"
_NULLS = frozenset({"", "~", "null", "Null", "NULL"})
_BCRYPT = re.compile(r"\$2[abxy]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")


class BadWebConfigError(BadSettingError):
    """The file, or one that it names, is not usable; the text is one line without secrets."""


class TLS(Struct, frozen=True, forbid_unknown_fields=True):
    """`tls_server_config`. Inline PEM texts, or the names of files that hold them; a file beats a text."""

    cert: str = ""
    key: str = ""
    client_ca: str = ""
    cert_file: str = ""
    key_file: str = ""
    client_ca_file: str = ""
    client_auth_type: ClientAuth | Literal[""] = ""
    client_allowed_sans: tuple[str, ...] | None = None
    min_version: Version = _OLDEST
    max_version: Version = "TLS13"
    cipher_suites: tuple[Cipher, ...] = ()
    prefer_server_cipher_suites: Switch = "true"
    curve_preferences: tuple[Curve, ...] = ()

    @property
    def enabled(self) -> bool:
        """Tell whether the listener speaks TLS: as in the toolkit, a minimum version alone is not enough."""
        return any((self.cert, self.cert_file, self.key, self.key_file, self.has_ca, self.client_auth_type))

    @property
    def has_ca(self) -> bool:
        """Tell whether there is a CA of client certificates."""
        return bool(self.client_ca or self.client_ca_file)

    @property
    def verifies_clients(self) -> bool:
        """Tell whether clients are asked for a certificate.

        Not with RequestClientCert: it is never looked at there, so we need not ask.
        """
        return self.client_auth_type in _VERIFYING

    @property
    def requires_certificate(self) -> bool:
        """Tell whether a client without a certificate is refused."""
        return self.client_auth_type in _REQUIRING

    @property
    def prefers_own_ciphers(self) -> bool:
        """Tell whether the order of our ciphers counts, not that of the client's."""
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
    """The headers that can be set; an empty one is not sent."""

    csp: str = ""
    frames: Literal["deny", "sameorigin", ""] = ""
    types: Literal["nosniff", ""] = ""
    xss: str = ""
    hsts: str = ""


class HTTP(Struct, frozen=True, forbid_unknown_fields=True):
    """`http_server_config`. HTTP/2 is never spoken here, which is what its clients are told (ALPN)."""

    http2: Switch = "true"
    headers: Headers = field(default_factory=Headers)


class WebConfig(Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. `rate_limit` is not in it: strangers would use up what Prometheus needs."""

    tls_server_config: TLS = field(default_factory=TLS)
    http_server_config: HTTP = field(default_factory=HTTP)
    basic_auth_users: dict[str, str] = field(default_factory=dict)


def parse(text: bytes) -> WebConfig:
    """Return the configuration; raise BadWebConfigError for what is not one."""
    if not text.strip():
        # Most likely somebody is writing it in place just now; it would let everybody in.
        raise BadWebConfigError("empty; for a listener that is open to everybody it takes {}")
    tree = _tree(text)
    try:
        config = msgspec.convert({} if tree is None else tree, WebConfig)
    except msgspec.ValidationError as error:
        raise BadWebConfigError(_complaint(str(error))) from None
    _check_tls(config.tls_server_config)
    for name, value in headers(config).items():
        if not (value.isascii() and value.isprintable()):
            raise BadWebConfigError(f"http_server_config.headers.{name} takes printable ASCII, on one line")
    for user, hashed in config.basic_auth_users.items():
        if not _BCRYPT.fullmatch(hashed):
            # Not shown: it may be the password itself.
            raise BadWebConfigError(
                f"basic_auth_users: got no bcrypt hash for {user!r}; it takes one, as htpasswd -nBC 10 prints"
            )
    return config


def headers(config: WebConfig) -> dict[str, str]:
    """Return the headers to send with each answer."""
    found: dict[str, str] = msgspec.to_builtins(config.http_server_config.headers)
    return {name: value.strip() for name, value in found.items() if value.strip()}


def _check_tls(tls: TLS) -> None:
    """Refuse what fits the form and makes no sense, as the toolkit does, and what we could only ignore."""
    if not tls.enabled:
        return
    for name in ("cert", "key"):
        if not (getattr(tls, name) or getattr(tls, f"{name}_file")):
            raise BadWebConfigError(f"tls_server_config: missing one of {name} and {name}_file")
    if tls.has_ca and tls.client_auth_type in ("", "NoClientCert"):
        raise BadWebConfigError(
            "tls_server_config: client_ca_file without client_auth_type; it takes RequireAndVerifyClientCert"
        )
    if tls.client_allowed_sans is not None and not tls.requires_certificate:
        raise BadWebConfigError(
            "tls_server_config: client_allowed_sans without client_auth_type: RequireAndVerifyClientCert"
        )
    if tls.client_auth_type in ("RequireClientCert", "RequireAnyClientCert") and not tls.has_ca:
        # Anybody can make one. OpenSSL, as Python drives it, verifies each that it is given.
        raise BadWebConfigError(
            f"tls_server_config.client_auth_type: got {tls.client_auth_type} without client_ca_file; "
            "it takes one, as certificates are always verified here"
        )
    if tls.min_version > tls.max_version:  # their names sort
        raise BadWebConfigError(
            f"tls_server_config: min_version {tls.min_version} is above max_version {tls.max_version}"
        )
    if len(tls.curve_preferences) > 1:
        raise BadWebConfigError(
            f"tls_server_config.curve_preferences: got {len(tls.curve_preferences)}; "
            "it takes one, or none for OpenSSL's own order"
        )


# -- from text to plain dicts -------------------------------------------------------------------------


class _Loader(yaml.BaseLoader):
    """Leaves scalars text, so that a user may be called 123 or yes; a key that stands twice is an error.

    An empty value is as good as none, so it is left out.
    """

    def construct_scalar(self, node: yaml.ScalarNode) -> Any:
        text = super().construct_scalar(node)
        return None if node.style is None and text in _NULLS else text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        found = super().construct_mapping(node, deep)
        if len(found) < len(keys):
            raise yaml.constructor.ConstructorError(None, None, "a key stands twice", node.start_mark)
        return {key: value for key, value in found.items() if value is not None}


def _tree(text: bytes) -> Any:
    try:
        return yaml.load(text, _Loader)  # noqa: S506  makes less than SafeLoader does: text, lists and dicts
    except RecursionError:
        raise BadWebConfigError("not YAML: nested too deep") from None
    except yaml.YAMLError as error:
        # PyYAML's own words quote the line, and a hash or a key may be in it.
        mark = getattr(error, "problem_mark", None)
        twice = getattr(error, "problem", "") == "a key stands twice"
        what = "a key stands twice below" if twice else "not YAML at"
        where = f"line {mark.line + 1}, column {mark.column + 1}" if mark else "some character"
        raise BadWebConfigError(f"{what} {where}") from None


_TAKES: dict[str, tuple[str, ...]] = {
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
_WORDS = {
    "Object contains unknown field": "got the unknown key",
    "Invalid enum value": "got",
    "Expected `object`": "Expected keys and values",
    "got `object`": "got keys and values",
    "Expected `array`": "Expected a list",
    "got `array`": "got a list",
}


def _complaint(error: str) -> str:
    """Return what msgspec says, with the key first and what it takes last."""
    what, _, where = error.partition(" - at ")
    path = re.sub(r"[`$]|\[\d+\]", "", where).strip(".")
    takes = ", ".join(_TAKES.get(path.rpartition(".")[2], ()))
    for theirs, ours in _WORDS.items():
        what = what.replace(theirs, ours)
    return f"{path or 'the file'}: {what}" + (f"; it takes {takes}" if takes else "")
