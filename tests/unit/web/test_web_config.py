"""`--web.config.file`: what is valid, by promtool's word too; what it comes to; what rereading it does."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
import statistics
import subprocess
import time
from pathlib import Path

import bcrypt
import pytest
import trustme
from cryptography.hazmat.primitives import serialization
from harness.processes import need

from celery_exporter.web import passwords
from celery_exporter.web.passwords import Passwords, TooManyGuessesError
from celery_exporter.web.web_config import BadWebConfigError, headers, parse
from celery_exporter.web.web_config_reloader import ProtectionFile

#: Of "right", at the lowest cost there is; the tests need not be slow.
# With a salt that is always the same, for these are in the names of tests.
HASH = bcrypt.hashpw(b"right", b"$2b$04$" + b"a" * 21 + b"u").decode()
OTHER = bcrypt.hashpw(b"other", b"$2b$04$" + b"b" * 21 + b"u").decode()
TLS = "cert_file: server.pem, key_file: server.key"
VERIFY = f"{TLS}, client_auth_type: RequireAndVerifyClientCert, client_ca_file: ca.pem"

GOOD = {
    "nothing": "{}",
    "a comment": "# nothing yet",
    "empty sections": "tls_server_config:\nhttp_server_config: {}\nbasic_auth_users: ~",
    "users": f"basic_auth_users: {{alice: {HASH}, bob: '{OTHER}'}}",
    "users that look like something else": f"basic_auth_users: {{123: {HASH}, yes: {HASH}, 1.5: {HASH}}}",
    "a hash of htpasswd": f"basic_auth_users: {{a: {HASH.replace('$2b$', '$2y$')}}}",
    "an old hash": f"basic_auth_users: {{a: {HASH.replace('$2b$', '$2a$')}}}",
    "TLS": f"tls_server_config: {{{TLS}}}",
    "a version alone is no TLS": "tls_server_config: {min_version: TLS13}",
    "versions": f"tls_server_config: {{{TLS}, min_version: TLS10, max_version: TLS12}}",
    "client certificates": f"tls_server_config: {{{VERIFY}}}",
    "of the system's CAs": f"tls_server_config: {{{TLS}, client_auth_type: RequireAndVerifyClientCert}}",
    "any client certificate": "tls_server_config: {" + VERIFY.replace("RequireAndVerify", "RequireAny") + "}",
    "a client certificate if there is one": "tls_server_config: {"
    + VERIFY.replace("RequireAndVerifyClientCert", "VerifyClientCertIfGiven")
    + "}",
    "no client certificate": f"tls_server_config: {{{TLS}, client_auth_type: NoClientCert}}",
    "ciphers": f"tls_server_config: {{{TLS}, cipher_suites: [TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256]}}",
    "ciphers of TLS 1.3": f"tls_server_config: {{{TLS}, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
    "a curve": f"tls_server_config: {{{TLS}, curve_preferences: [CurveP384]}}",
    "whose order": f"tls_server_config: {{{TLS}, prefer_server_cipher_suites: no}}",
    "HTTP/2": "http_server_config: {http2: true}",
    "no HTTP/2": "http_server_config: {http2: off}",
    "headers": "http_server_config: {headers: {X-Frame-Options: deny, X-Content-Type-Options: nosniff, "
    "X-XSS-Protection: 0, Strict-Transport-Security: max-age=1, Content-Security-Policy: sandbox; x 'y'}}",
}
#: What newer toolkits take and the promtool of a distribution may not know yet.
NEWER = {
    "texts instead of files": "tls_server_config: {{cert: {cert}, key: {key}}}",
    "names": f"tls_server_config: {{{VERIFY}, client_allowed_sans: [prometheus.example, 10.0.0.7]}}",
}
#: Not valid: the text, and what the complaint has in it.
BAD = {
    "a file that is not there": (
        f"tls_server_config: {{{TLS.replace('server.pem', 'none.pem')}}}",
        "none.pem: No such",
    ),
    "no key": ("tls_server_config: {cert_file: server.pem}", "missing one of key and key_file"),
    "no certificate": ("tls_server_config: {key_file: server.key}", "missing one of cert and cert_file"),
    "no certificate at all": ("tls_server_config: {client_auth_type: NoClientCert}", "missing one of cert"),
    "a key for another": (
        f"tls_server_config: {{{TLS.replace('server.pem', 'ca.pem')}}}",
        "key values mismatch",
    ),
    "no PEM": (f"tls_server_config: {{{TLS.replace('server.pem', 'notes.txt')}}}", "cannot be used"),
    "an encrypted key": (f"tls_server_config: {{{TLS.replace('server.key', 'locked.key')}}}", "encrypted"),
    "unknown key": ("foo: 1", "unknown key `foo`; it takes tls_server_config, http_server_config"),
    "unknown key of TLS": (
        f"tls_server_config: {{{TLS}, foo: 1}}",
        "tls_server_config: got the unknown key `foo`",
    ),
    "a version that is none": (
        f"tls_server_config: {{{TLS}, min_version: TLS14}}",
        "tls_server_config.min_version: got 'TLS14'; it takes TLS10, TLS11, TLS12, TLS13",
    ),
    "a policy that is none": (
        f"tls_server_config: {{{TLS}, client_auth_type: Maybe}}",
        "it takes NoClientCert",
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
        "http2: got 'maybe'; it takes true, false",
    ),
    "a header that cannot be set": (
        "http_server_config: {headers: {Server: x}}",
        "headers: got the unknown key `Server`",
    ),
    "in lower case": (
        "http_server_config: {headers: {x-frame-options: deny}}",
        "unknown key `x-frame-options`",
    ),
    "a value it does not take": (
        "http_server_config: {headers: {X-Frame-Options: allow}}",
        "it takes deny, sameorigin",
    ),
    "no hash": ("basic_auth_users: {alice: hunter2}", "no bcrypt hash for 'alice'"),
    "a cost that is none": (f"basic_auth_users: {{alice: {HASH.replace('$04$', '$99$')}}}", "no bcrypt hash"),
    "a user twice": (f"basic_auth_users:\n  alice: {HASH}\n  alice: {OTHER}\n", "a key stands twice"),
    "a list": (f"[{HASH}]", "the file: Expected keys and values, got a list"),
    "a text": ("hunter2", "the file: Expected keys and values"),
    "text for a section": ("tls_server_config: hunter2", "tls_server_config: Expected keys and values"),
    "no YAML": (f"basic_auth_users:\n\t- {HASH}", "not YAML at line 2"),
    "a zero byte in a path": (
        'tls_server_config: {cert_file: "a\\0b", key_file: server.key}',
        "a character in it that cannot be used",
    ),
    "no alias": ("basic_auth_users: {alice: *hunter2}", "not YAML at line 1"),
}
#: Not valid here, though promtool takes it; config.py says why.
STRICTER = {
    "nothing at all": ("", "empty"),
    "half a character": (
        f'basic_auth_users: {{"\\ud800": {HASH}}}',
        "a character in it that cannot be used",
    ),
    "a CA that is none": (
        f"tls_server_config: {{{VERIFY.replace('ca.pem', 'notes.txt')}}}",
        "client_ca_file cannot be used",
    ),
    "anybody's certificate": (
        f"tls_server_config: {{{TLS}, client_auth_type: RequireAnyClientCert}}",
        "without client_ca_file",
    ),
    "no version left": (
        f"tls_server_config: {{{TLS}, min_version: TLS13, max_version: TLS12}}",
        "is above max_version",
    ),
    "no cipher left": (
        f"tls_server_config: {{{TLS}, max_version: TLS12, cipher_suites: [TLS_AES_128_GCM_SHA256]}}",
        "none of them is for a version up to max_version",
    ),
    "several curves": (
        f"tls_server_config: {{{TLS}, curve_preferences: [X25519, CurveP256]}}",
        "it takes one",
    ),
    "part of a hash": (f"basic_auth_users: {{alice: {HASH[:-1]}}}", "no bcrypt hash"),
    "a header of two lines": ('http_server_config: {headers: {X-XSS-Protection: "0\\nX: 1"}}', "on one line"),
    "two documents": ("{}\n---\nfoo: 1", "not YAML"),
    # Of newer toolkits:
    "names of nobody": (
        f"tls_server_config: {{{TLS}, client_allowed_sans: [x]}}",
        "client_allowed_sans without",
    ),
    "a limit that strangers would use up": (
        "rate_limit: {interval: 1s, burst: 9}",
        "unknown key `rate_limit`",
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Return a folder with the files that the texts above name."""
    found = tmp_path_factory.mktemp("web")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(found / "ca.pem")
    issue(authority, found)
    (found / "notes.txt").write_text("nothing to see here")
    key = serialization.load_pem_private_key((found / "server.key").read_bytes(), None)
    (found / "locked.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"hunter2"),
        )
    )
    return found


def issue(authority: trustme.CA, folder: Path) -> None:
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.cert_chain_pems[0].write_to_path(folder / "server.pem")
    issued.private_key_pem.write_to_path(folder / "server.key")


def read(folder: Path, text: str) -> ProtectionFile:
    path = folder / "web.yml"
    path.write_text(text)
    return ProtectionFile(path)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(BadWebConfigError) as caught:
        read(folder, text)
    found = str(caught.value)
    assert "\n" not in found
    assert found.startswith(f"--web.config.file: {folder / 'web.yml'}: ")
    return found


def promtool_takes(folder: Path, text: str) -> bool:
    path = folder / "promtool.yml"
    path.write_text(text)
    command = [need("promtool"), "check", "web-config", path]
    return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0


# -- what is valid ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_promtool_takes_we_take(folder, text):
    assert promtool_takes(folder, text)
    read(folder, text)


@pytest.mark.parametrize(("text", "says"), BAD.values(), ids=BAD)
def test_what_promtool_refuses_we_refuse_in_one_line(folder, text, says):
    assert not promtool_takes(folder, text)
    assert says in complaint(folder, text)


@pytest.mark.parametrize(("text", "says"), STRICTER.values(), ids=STRICTER)
def test_some_more_we_refuse_for_a_reason(folder, text, says):
    assert says in complaint(folder, text)


@pytest.mark.parametrize("text", NEWER.values(), ids=NEWER)
def test_what_newer_toolkits_take(folder, text):
    texts = {
        name: repr_yaml((folder / f"server.{end}").read_text())
        for name, end in (("cert", "pem"), ("key", "key"))
    }
    assert read(folder, text.format(**texts) if "{cert}" in text else text).current().context


def repr_yaml(text: str) -> str:
    return '"' + text.replace("\n", "\\n") + '"'


@pytest.mark.parametrize("text", [text for text, _ in (*BAD.values(), *STRICTER.values())])
def test_no_complaint_has_a_secret_in_it(folder, text):
    said = complaint(folder, text)
    assert [secret for secret in ("hunter2", HASH[7:], OTHER[7:], "PRIVATE") if secret in said] == []


# -- what it comes to -----------------------------------------------------------------------------------


def test_headers_are_what_the_file_says_and_an_empty_one_is_none():
    found = headers(parse(GOOD["headers"].encode()))
    assert found["X-XSS-Protection"] == "0"
    assert found["Content-Security-Policy"] == "sandbox; x 'y'"
    assert headers(parse(b"http_server_config: {headers: {X-Frame-Options: ''}}")) == {}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_is_1_2_or_newer_unless_the_file_says_otherwise(folder):
    found = read(folder, GOOD["TLS"]).current().context
    assert (found.minimum_version, found.maximum_version) == (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    found = read(folder, GOOD["versions"]).current().context
    assert (found.minimum_version, found.maximum_version) == (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_2)
    found = read(folder, GOOD["ciphers of TLS 1.3"]).current().context
    assert found.minimum_version == ssl.TLSVersion.TLSv1_3, "it has no cipher for an older one"


def test_ciphers_and_their_order_are_those_of_the_file(folder):
    found = read(folder, GOOD["ciphers"]).current().context
    older = [each["name"] for each in found.get_ciphers() if each["protocol"] != "TLSv1.3"]
    assert older == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert found.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert not read(folder, GOOD["whose order"]).current().context.options & ssl.OP_CIPHER_SERVER_PREFERENCE


# -- rereading ------------------------------------------------------------------------------------------


def test_a_changed_file_is_read_again_and_an_unchanged_one_is_not(folder):
    file = read(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    assert file.current() is before
    (folder / "web.yml").write_text(f"basic_auth_users: {{bob: {HASH}, carol: {HASH}}}")
    assert set(file.current().users) == {b"bob", b"carol"}


def test_new_certificates_are_read_without_a_change_of_the_file(folder):
    file = read(folder, GOOD["client certificates"])
    before = file.current().context
    issue(trustme.CA(), folder)
    assert file.current().context is not before


@pytest.mark.parametrize(("before", "after"), [("{}", GOOD["TLS"]), (GOOD["TLS"], "{}")], ids=["on", "off"])
def test_tls_that_is_switched_by_the_file_alone_is_not_in_force_and_said_so(folder, before, after):
    file = read(folder, before)
    (folder / "web.yml").write_text(after)
    assert (file.current().context is None) is (before == "{}")
    assert not file.up_to_date


@pytest.mark.parametrize(
    "text",
    [
        "",
        "foo: 1",
        "basic_auth_users: {alice: hunter2}",
        f"tls_server_config: {{{TLS}, client_ca_file: none}}",
    ],
    ids=["being written", "unknown", "no hash", "no CA"],
)
def test_a_reread_that_fails_keeps_the_old_and_says_so_once(folder, caplog, text):
    file = read(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    (folder / "web.yml").write_text(text)
    for _ in range(3):
        assert file.current() is before
        assert not file.up_to_date
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; the old configuration stays in force")
    assert "hunter2" not in caplog.text
    (folder / "web.yml").write_text(f"basic_auth_users: {{bob: {HASH}}}")
    assert set(file.current().users) == {b"bob"}
    assert file.up_to_date


def test_a_file_that_goes_keeps_its_last_word_and_is_found_again(folder, caplog):
    file = read(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    (folder / "web.yml").rename(folder / "away.yml")
    assert file.current() is before
    assert file.current() is before
    assert ["No such file" in message for message in caplog.messages] == [True]
    (folder / "away.yml").rename(folder / "web.yml")
    file.current()
    assert file.up_to_date


def test_a_certificate_without_its_key_yet_is_waited_for(folder, caplog):
    caplog.set_level(logging.INFO)
    file = read(folder, GOOD["TLS"])
    before = file.current().context
    other = trustme.CA().issue_cert("localhost")
    other.cert_chain_pems[0].write_to_path(folder / "server.pem")
    assert file.current().context is before
    assert "mismatch" in caplog.text
    other.private_key_pem.write_to_path(folder / "server.key")
    assert file.current().context is not before


@pytest.mark.parametrize(
    ("first", "then"), [("TLS", "users"), ("users", "TLS"), ("client certificates", "users")]
)
def test_tls_itself_stays_on_or_off_until_a_restart_and_the_rest_is_taken(folder, caplog, first, then):
    file = read(folder, GOOD[first])
    before = file.current()
    (folder / "web.yml").write_text(GOOD[then])
    after = file.current()
    assert "restart" in caplog.text
    assert (after.context, after.requires_certificate) == (before.context, before.requires_certificate)
    assert bool(after.users) == (then == "users")


# -- passwords -------------------------------------------------------------------------------------------


def guesses(*asked: tuple[dict[bytes, bytes], bytes, bytes, str], checker: Passwords | None = None) -> list:
    """Return the answers to questions that are asked at once."""
    checker = checker or Passwords()

    async def ask() -> list:
        return await asyncio.gather(*(checker.match(*each) for each in asked), return_exceptions=True)

    return asyncio.run(ask())


USERS = {b"alice": HASH.encode(), b"bob": OTHER.encode()}


@pytest.mark.parametrize(
    ("user", "password", "right"),
    [
        (b"alice", b"right", True),
        (b"bob", b"other", True),
        (b"alice", b"other", False),
        (b"alice", b"", False),
        (b"", b"right", False),
        (b"nobody", b"right", False),
        (b"nobody", b"fakepassword", False),
        (b"alice", b"right\0", False),
        (b"alice", b"r" * 10_000, False),
    ],
)
def test_a_password_is_right_for_its_user_only(user, password, right):
    assert guesses((USERS, user, password, "")) == [right]


def test_a_password_longer_than_bcrypt_looks_at_is_cut_as_by_other_tools():
    users = {b"alice": bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))}
    assert guesses((users, b"alice", b"x" * 80, "")) == [True]


def test_a_sandbox_that_forbids_to_step_back_costs_no_login(monkeypatch):
    def forbidden(*_: int) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    assert guesses((USERS, b"alice", b"right", "")) == [True]


def test_a_good_password_is_remembered_until_its_hash_changes(monkeypatch):
    checker = Passwords()
    assert guesses((USERS, b"alice", b"right", ""), checker=checker) == [True]
    compared = []
    monkeypatch.setattr(bcrypt, "checkpw", lambda *_: compared.append(1) or False)
    assert guesses((USERS, b"alice", b"right", ""), checker=checker) == [True]
    assert compared == []
    changed = {b"alice": OTHER.encode()}
    assert guesses((changed, b"alice", b"right", ""), checker=checker) == [False]
    gone = {b"bob": OTHER.encode()}
    assert guesses((gone, b"alice", b"right", ""), checker=checker) == [False]
    assert len(compared) == 2


def test_no_more_than_some_good_ones_are_remembered():
    users = {str(number).encode(): HASH.encode() for number in range(passwords.REMEMBERED + 20)}
    checker = Passwords()
    for user in users:
        assert guesses((users, user, b"right", ""), checker=checker) == [True]
    assert len(checker._good) == passwords.REMEMBERED


def test_an_unknown_user_takes_as_long_as_a_wrong_password():
    users = {b"alice": bcrypt.hashpw(b"right", bcrypt.gensalt(9))}

    def took(user: bytes) -> float:
        begin = time.process_time()  # which no other process takes part in
        assert guesses((users, user, b"wrong", "")) == [False]
        return time.process_time() - begin

    times = [(took(b"alice"), took(b"nobody")) for _ in range(5)]  # in turn, on whatever machine
    known, unknown = map(statistics.median, zip(*times, strict=True))
    assert 0.5 < known / unknown < 2


@pytest.mark.parametrize("costs", [(4, 9), (9, 4)])
def test_an_unknown_user_takes_as_long_as_some_known_one_where_they_differ(costs):
    """And always as long: neither the first one's time nor a mean of theirs tells who is known."""
    users = {str(cost).encode(): bcrypt.hashpw(b"right", bcrypt.gensalt(cost)) for cost in costs}
    checker = Passwords()
    found = {checker._nobody(users, str(number).encode())[4:6] for number in range(50)}
    assert found == {b"04", b"09"}
    assert checker._nobody(users, b"x") == checker._nobody(dict(reversed(users.items())), b"x")


def test_a_crowd_with_one_good_password_is_compared_once():
    crowd = [(USERS, b"alice", b"right", str(number)) for number in range(1_000)]
    assert guesses(*crowd) == [True] * 1_000


def test_who_knows_the_password_is_let_in_while_somebody_guesses_from_the_same_address():
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(50)]
    assert guesses(*flood, (USERS, b"alice", b"right", "10.0.0.1"))[-1] is True


def test_addresses_take_turns():
    """A hundred times as many guesses from elsewhere make nobody wait for more than one of them."""
    order = []
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(60)]

    async def ask() -> None:
        checker = Passwords()

        async def one(*asked) -> None:
            await checker.match(*asked)
            order.append(asked[3])

        await asyncio.gather(*(one(*each) for each in [*flood, (USERS, b"alice", b"right", "10.0.0.2")]))

    asyncio.run(ask())
    assert order.index("10.0.0.2") <= 2


def test_a_flood_of_guesses_shuts_out_its_own_address_only():
    flood = [(USERS, b"alice", str(number).encode(), "10.0.0.1") for number in range(1_000)]
    answers = guesses(*flood, (USERS, b"alice", b"right", "10.0.0.2"))
    assert answers[-1] is True
    refused = [answer for answer in answers if isinstance(answer, TooManyGuessesError)]
    assert len(refused) == 1_000 - passwords.WAITING_OF_ONE - 1, "one is compared at once"


def test_the_guesses_that_wait_are_bounded_wherever_they_come_from():
    flood = [(USERS, b"alice", str(number).encode(), str(number)) for number in range(1_000)]
    checker = Passwords()
    refused = [
        answer for answer in guesses(*flood, checker=checker) if isinstance(answer, TooManyGuessesError)
    ]
    assert len(refused) == 1_000 - passwords.WAITING
    assert (checker._waiting, checker._asked) == ({}, {})
