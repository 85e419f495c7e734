"""Reloading of --web.config.file, and of the files that it names."""

from __future__ import annotations

import logging

import pytest
import trustme

from unit.web.configs import GOOD, HASH, TLS, issue, reloader


def test_only_a_changed_file_is_reloaded(folder):
    file = reloader(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    assert file.current() is before
    (folder / "web.yml").write_text(f"basic_auth_users: {{bob: {HASH}, carol: {HASH}}}")
    assert set(file.current().users) == {b"bob", b"carol"}


def test_changed_certificate_is_reloaded_without_a_change_of_the_config_file(folder):
    file = reloader(folder, GOOD["client certificates"])
    before = file.current().context
    issue(trustme.CA(), folder)
    assert file.current().context is not before


@pytest.mark.parametrize(("before", "after"), [("{}", GOOD["TLS"]), (GOOD["TLS"], "{}")], ids=["on", "off"])
def test_turning_tls_on_or_off_has_no_effect_and_is_reported(folder, before, after):
    file = reloader(folder, before)
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
    ids=["empty", "unknown key", "no hash", "no CA"],
)
def test_invalid_file_keeps_the_old_settings_and_is_logged_once(folder, caplog, text):
    file = reloader(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    (folder / "web.yml").write_text(text)
    for _ in range(3):
        assert file.current() is before
        assert not file.up_to_date
    assert len(caplog.messages) == 1
    assert caplog.messages[0].endswith("; the old configuration stays in use")
    assert "hunter2" not in caplog.text
    (folder / "web.yml").write_text(f"basic_auth_users: {{bob: {HASH}}}")
    assert set(file.current().users) == {b"bob"}
    assert file.up_to_date


def test_missing_file_keeps_the_old_settings_until_it_is_back(folder, caplog):
    file = reloader(folder, f"basic_auth_users: {{alice: {HASH}}}")
    before = file.current()
    (folder / "web.yml").rename(folder / "away.yml")
    assert file.current() is before
    assert file.current() is before
    assert ["No such file" in message for message in caplog.messages] == [True]
    (folder / "away.yml").rename(folder / "web.yml")
    file.current()
    assert file.up_to_date


def test_new_certificate_is_used_after_its_key_is_written(folder, caplog):
    caplog.set_level(logging.INFO)
    file = reloader(folder, GOOD["TLS"])
    before = file.current().context
    other = trustme.CA().issue_cert("localhost")
    other.cert_chain_pems[0].write_to_path(folder / "server.pem")
    assert file.current().context is before
    assert "mismatch" in caplog.text
    other.private_key_pem.write_to_path(folder / "server.key")
    assert file.current().context is not before


@pytest.mark.parametrize(
    ("before", "after"), [("TLS", "users"), ("users", "TLS"), ("client certificates", "users")]
)
def test_change_of_tls_waits_for_a_restart_and_other_settings_apply(folder, caplog, before, after):
    file = reloader(folder, GOOD[before])
    old = file.current()
    (folder / "web.yml").write_text(GOOD[after])
    new = file.current()
    assert "restart" in caplog.text
    assert (new.context, new.requires_certificate) == (old.context, old.requires_certificate)
    assert bool(new.users) == (after == "users")
