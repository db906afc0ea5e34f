"""The soak of killed clients, as far as the ordinary suite has time; `make soak` runs it all."""

import json

import pytest

from tests.soak.clients_soak import soak


def check(report, kills):
    """Fail with the whole report unless everything is as it was before."""
    assert report["ok"], json.dumps(report, indent=2)  # whole: pytest shortens a dictionary
    assert report["killed"] + report["ended"] == kills
    assert report["killed"] > 0
    assert report["verified_blocks"] > kills
    assert report["compilations_since_ready"] == 0


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_killing_fifty_clients_leaves_nothing_behind():
    check(soak(50, 1), 50)


@pytest.mark.soak
def test_killing_a_thousand_clients_leaves_nothing_behind():
    check(soak(1000, 2), 1000)
