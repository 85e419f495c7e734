"""`--web.config.file`: which texts are valid, compared with promtool, and the messages for invalid ones."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from harness.processes import need

from celery_exporter.web.web_config import BadWebConfigError, headers, parse
from unit.web.configs import GOOD, HASH, OTHER_HASH, TLS, VERIFY, reloader

#: Valid texts that need a newer promtool than some distributions have.
NEWER = {
    "inline PEM texts": "tls_server_config: {{cert: {cert}, key: {key}}}",
    "allowed names": f"tls_server_config: {{{VERIFY}, client_allowed_sans: [prometheus.example, 10.0.0.7]}}",
}
#: Invalid texts, each with a part of the error message.
BAD = {
    "a file that is not there": (
        f"tls_server_config: {{{TLS.replace('server.pem', 'none.pem')}}}",
        "none.pem: No such",
    ),
    "no key": ("tls_server_config: {cert_file: server.pem}", "missing key or key_file"),
    "no certificate": ("tls_server_config: {key_file: server.key}", "missing cert or cert_file"),
    "no certificate at all": ("tls_server_config: {client_auth_type: NoClientCert}", "missing cert"),
    "a key for another": (
        f"tls_server_config: {{{TLS.replace('server.pem', 'ca.pem')}}}",
        "key values mismatch",
    ),
    "no PEM": (f"tls_server_config: {{{TLS.replace('server.pem', 'notes.txt')}}}", "invalid cert and key"),
    "an encrypted key": (f"tls_server_config: {{{TLS.replace('server.key', 'locked.key')}}}", "encrypted"),
    "unknown key": ("foo: 1", "unknown key `foo`; expected tls_server_config, http_server_config"),
    "unknown key of TLS": (
        f"tls_server_config: {{{TLS}, foo: 1}}",
        "tls_server_config: unknown key `foo`",
    ),
    "a version that is none": (
        f"tls_server_config: {{{TLS}, min_version: TLS14}}",
        "tls_server_config.min_version: got 'TLS14'; expected TLS10, TLS11, TLS12, TLS13",
    ),
    "a policy that is none": (
        f"tls_server_config: {{{TLS}, client_auth_type: Maybe}}",
        "expected NoClientCert",
    ),
    "a CA without policy": (
        f"tls_server_config: {{{TLS}, client_ca_file: ca.pem}}",
        "RequireAndVerifyClientCert",
    ),
    "a CA that is not there": (
        f"tls_server_config: {{{VERIFY.replace('ca.pem', 'none')}}}",
        "none: No such file",
    ),
    "a cipher that is none": (
        f"tls_server_config: {{{TLS}, cipher_suites: [AES]}}",
        "cipher_suites: got 'AES'",
    ),
    "a curve that is none": (
        f"tls_server_config: {{{TLS}, curve_preferences: [P9]}}",
        "curve_preferences: got 'P9'",
    ),
    "a switch that is none": (
        "http_server_config: {http2: maybe}",
        "http2: got 'maybe'; expected true, false",
    ),
    "a header that cannot be set": (
        "http_server_config: {headers: {Server: x}}",
        "headers: unknown key `Server`",
    ),
    "in lower case": (
        "http_server_config: {headers: {x-frame-options: deny}}",
        "unknown key `x-frame-options`",
    ),
    "a value it does not take": (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "expected deny, sameorigin",
    ),
    "no hash": ("basic_auth_users: {alice: hunter2}", "no bcrypt hash for 'alice'"),
    "a cost that is none": (f"basic_auth_users: {{alice: {HASH.replace('$04$', '$99$')}}}", "no bcrypt hash"),
    "a user twice": (f"basic_auth_users:\n  alice: {HASH}\n  alice: {OTHER_HASH}\n", "duplicate key"),
    "a list": (f"[{HASH}]", "the file: expected a mapping, got a list"),
    "a text": ("hunter2", "the file: expected a mapping"),
    "text for a section": ("tls_server_config: hunter2", "tls_server_config: expected a mapping"),
    "no YAML": (f"basic_auth_users:\n\t- {HASH}", "invalid YAML at line 2"),
    "a zero byte in a path": (
        'tls_server_config: {cert_file: "a\\0b", key_file: server.key}',
        "it contains an invalid character",
    ),
    "no alias": ("basic_auth_users: {alice: *hunter2}", "invalid YAML at line 1"),
}
#: Texts that promtool accepts and this exporter rejects; comments in web_config.py give the reasons.
STRICTER = {
    "an empty file": ("", "empty"),
    "half a character": (
        f'basic_auth_users: {{"\\ud800": {HASH}}}',
        "it contains an invalid character",
    ),
    "a CA that is none": (
        f"tls_server_config: {{{VERIFY.replace('ca.pem', 'notes.txt')}}}",
        "invalid client_ca_file",
    ),
    "anybody's certificate": (
        f"tls_server_config: {{{TLS}, client_auth_type: RequireAnyClientCert}}",
        "requires client_ca_file",
    ),
    "no version left": (
        f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS12}}",
        "is above max_version",
    ),
    "no cipher left": (
        f"tls_server_config: {{{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
        "all of them need a version above max_version",
    ),
    "several curves": (
        f"tls_server_config: {{{TLS}, curve_preferences: [X25519, CurveP256]}}",
        "expected one",
    ),
    "part of a hash": (f"basic_auth_users: {{alice: {HASH[:-1]}}}", "no bcrypt hash"),
    "a header of two lines": (
        'http_server_config: {headers: {X-XSS-Protection: "0\\nX: 1"}}',
        "expected one line",
    ),
    "two documents": ("{}\n---\nfoo: 1", "invalid YAML"),
    # Keys of newer toolkits:
    "allowed names without client certificates": (
        f"tls_server_config: {{{TLS}, client_allowed_sans: [x]}}",
        "client_allowed_sans requires",
    ),
    "a rate limit": (
        "rate_limit: {interval: 1s, burst: 9}",
        "unknown key `rate_limit`",
    ),
}


def error(folder: Path, text: str) -> str:
    """Return the error message for a text."""
    with pytest.raises(BadWebConfigError) as caught:
        reloader(folder, text)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--web.config.file: {folder / 'web.yml'}: ")
    return message


def promtool_accepts(folder: Path, text: str) -> bool:
    path = folder / "promtool.yml"
    path.write_text(text)
    command = [need("promtool"), "check", "web-config", path]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


# -- validation --------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_text_that_promtool_accepts_is_accepted(folder, text):
    assert promtool_accepts(folder, text)
    reloader(folder, text)


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_text_that_promtool_rejects_is_rejected_in_one_line(folder, text, message):
    assert not promtool_accepts(folder, text)
    assert message in error(folder, text)


@pytest.mark.parametrize(("text", "message"), STRICTER.values(), ids=STRICTER)
def test_some_texts_that_promtool_accepts_are_rejected(folder, text, message):
    assert message in error(folder, text)


@pytest.mark.parametrize("text", NEWER.values(), ids=NEWER)
def test_text_of_a_newer_toolkit_is_accepted(folder, text):
    texts = {
        name: repr_yaml((folder / f"server.{end}").read_text())
        for name, end in (("cert", "pem"), ("key", "key"))
    }
    assert reloader(folder, text.format(**texts) if "{cert}" in text else text).current().context


def repr_yaml(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


@pytest.mark.parametrize("text", [text for text, _ in (*BAD.values(), *STRICTER.values())])
def test_no_error_contains_a_secret(folder, text):
    message = error(folder, text)
    assert [secret for secret in ("hunter2", HASH[7:], OTHER_HASH[7:], "PRIVATE") if secret in message] == []


# -- headers -------------------------------------------------------------------------------------------


def test_headers_are_those_of_the_file_without_empty_ones():
    values = headers(parse(GOOD["headers"].encode()))
    assert values["X-XSS-Protection"] == "0"
    assert values["Content-Security-Policy"] == "sandbox; x 'y'"
    assert headers(parse(b"http_server_config: {headers: {X-Frame-Options: ''}}")) == {}
