"""The exporter does not move messages on the broker."""

import json
import time

from harness.exporter import Exporter
from harness.servers import RedisServer
from harness.waiting import eventually
from redis import Redis

#: Seconds since a worker received the task: longer than the visibility timeout of kombu, one hour.
UNACKED_SECONDS = 7_200


def test_a_message_unacked_for_long_stays_unacked(running, tmp_path):
    """By default, any kombu consumer returns it to its queue after the visibility timeout."""
    server = running(RedisServer(tmp_path / "redis"))
    client = Redis.from_url(server.url)
    delivery = {"exchange": "", "routing_key": "celery"}
    message = {"body": "", "headers": {}, "properties": {"delivery_info": delivery, "delivery_tag": "tag"}}
    client.hset("unacked", "tag", json.dumps([message, "", "celery"]))
    client.zadd("unacked_index", {"tag": time.time() - UNACKED_SECONDS})
    app = running(Exporter(tmp_path / "exporter", server.url, "--update-interval", "1")).connected()
    # It inspects workers at each update at first. Each inspection starts a consumer of the replies.
    eventually(lambda: client.info("commandstats")["cmdstat_publish"]["calls"] > 5, 60)
    assert app.alive()
    assert client.hlen("unacked") == client.zcard("unacked_index") == 1
    assert client.llen("celery") == 0
