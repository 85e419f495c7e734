"""The exporter changes nothing on a broker that it was not asked to change."""

import json
import time

from harness.exporter import Exporter
from harness.servers import RedisServer
from harness.waiting import eventually
from redis import Redis

#: Seconds for which a worker has held the task: longer than kombu's own visibility timeout, an hour.
HELD = 7_200


def test_a_task_that_a_worker_holds_for_long_is_not_returned_to_its_queue(running, tmp_path):
    """kombu returns it from any process that consumes, by the visibility timeout of that process."""
    server = running(RedisServer(tmp_path / "redis"))
    client = Redis.from_url(server.url)
    delivery = {"exchange": "", "routing_key": "celery"}
    message = {"body": "", "headers": {}, "properties": {"delivery_info": delivery, "delivery_tag": "tag"}}
    client.hset("unacked", "tag", json.dumps([message, "", "celery"]))
    client.zadd("unacked_index", {"tag": time.time() - HELD})
    app = running(Exporter(tmp_path / "exporter", server.url, "--update-interval", "1")).connected()
    # It asks workers at each update at first: each question is a consumer of the answers.
    eventually(lambda: client.info("commandstats")["cmdstat_publish"]["calls"] > 5, 60)
    assert app.alive()
    assert client.hlen("unacked") == client.zcard("unacked_index") == 1
    assert client.llen("celery") == 0
