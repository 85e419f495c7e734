"""The TLS context of a `tls_server_config`."""

from __future__ import annotations

import ssl

import pytest

from unit.web.configs import GOOD, reloader


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_default_is_tls_1_2_or_newer(folder):
    context = reloader(folder, GOOD["TLS"]).current().context
    assert (context.minimum_version, context.maximum_version) == (
        ssl.TLSVersion.TLSv1_2,
        ssl.TLSVersion.TLSv1_3,
    )
    context = reloader(folder, GOOD["versions"]).current().context
    assert (context.minimum_version, context.maximum_version) == (
        ssl.TLSVersion.TLSv1,
        ssl.TLSVersion.TLSv1_2,
    )
    context = reloader(folder, GOOD["ciphers of TLS 1.3"]).current().context
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3, "there is no cipher for an older version"


def test_ciphers_and_their_order_are_those_of_the_file(folder):
    context = reloader(folder, GOOD["ciphers"]).current().context
    older = [cipher["name"] for cipher in context.get_ciphers() if cipher["protocol"] != "TLSv1.3"]
    assert older == ["ECDHE-ECDSA-AES128-GCM-SHA256"]
    assert context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    assert (
        not reloader(folder, GOOD["cipher order of the client"]).current().context.options
        & ssl.OP_CIPHER_SERVER_PREFERENCE
    )
