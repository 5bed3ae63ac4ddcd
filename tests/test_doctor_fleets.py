"""`rstream doctor` where servers belong together: a Cluster, and a master that Sentinels watch."""

from __future__ import annotations

import pytest

from rstream import RStream
from tests.commands import Order
from tests.doctoring import codes, found, look, looked
from tests.fleets import Cluster, Sentinels
from tests.orders import member, publish
from tests.waiting import eventually


def test_a_whole_cluster(cluster: Cluster, namespace: str) -> None:
    with RStream(cluster.url, namespace=namespace) as app:
        orders = app.stream("orders", Order, key="customer", shards=6)
        publish(orders, 300)
        member(orders)
        findings = look(app)
        # Its servers are set up to be quick, not to be safe, and others make them slow.
        assert codes(findings, "warning", "problem") <= {"fsync", "slow-calls", "latency"}
        masters = {finding.where for finding in findings if finding.code == "fsync"}
        assert len(masters) == 3 and all(where.startswith("127.0.0.1:") for where in masters)
        assert "few-shards" not in codes(findings)


def test_a_stream_that_cannot_use_the_cluster(cluster: Cluster, namespace: str) -> None:
    with RStream(cluster.url, namespace=namespace) as app:
        publish(app.stream("orders", Order, key="customer", shards=2), 10)
        finding = found(look(app), "few-shards")
    assert finding.level == "note" and finding.do == ("rstream streams reshard orders --shards 6",)


@pytest.mark.long
def test_a_cluster_that_loses_nodes(own_cluster: Cluster, namespace: str) -> None:
    with RStream(own_cluster.url, namespace=namespace) as app:
        publish(app.stream("orders", Order, key="customer", shards=6), 60)

        def told(*wanted: str) -> object:
            findings = look(app)
            return findings if set(wanted) <= codes(findings) else None

        replica = next(node for node in own_cluster.nodes if not node.is_master())
        replica.kill()
        findings = eventually(lambda: told("node-failed", "no-replica"), 30)
        failed = found(findings, "node-failed")
        assert failed.level == "warning" and str(replica.port) in failed.where
        alone = found(findings, "no-replica").where
        master = next(node for node in own_cluster.nodes if str(node.port) in alone)
        master.kill()
        findings = eventually(lambda: told("cluster-down"), 30)
        assert "problem" in {finding.level for finding in findings if finding.code == "cluster-down"}
        unreachable = [finding for finding in findings if finding.code in ("server-unreachable", "could-not-look")]
        assert unreachable and all(finding.level == "problem" for finding in unreachable)


def test_sentinels_that_see_each_other(sentinels: Sentinels, namespace: str) -> None:
    with RStream(sentinels.url, namespace=namespace) as app:
        publish(app.stream("orders", Order, key="customer", shards=2), 10)
        assert codes(look(app), "warning", "problem") <= {"fsync", "slow-calls", "latency"}
    one = sentinels.url.split(",")[0] + "/" + sentinels.name
    finding = found(looked(one, namespace=namespace), "sentinels-unnamed")
    assert finding.level == "note" and "there are 3 sentinels, the URL names 1" in finding.what


@pytest.mark.long
def test_sentinels_that_are_gone(own_sentinels: Sentinels) -> None:
    own_sentinels.sentinels[0].kill()
    finding = found(looked(own_sentinels.url), "sentinel-silent")
    assert finding.level == "warning" and str(own_sentinels.sentinels[0].port) in finding.where
    own_sentinels.sentinels[1].kill()
    findings = eventually(lambda: (told := looked(own_sentinels.url)) and "sentinel-quorum" in codes(told) and told, 30)
    assert found(findings, "sentinel-quorum").level == "problem"
