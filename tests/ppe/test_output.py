"""Numbers in words: one of a kind is told of in the singular."""

import pytest

from ppe import output


@pytest.mark.parametrize(
    ("what", "one"),
    [
        ("accepted", "1 accepted"),
        ("logins failed", "1 login failed"),
        ("discovery sessions crowded out", "1 discovery session crowded out"),
        ("timeouts in full", "1 timeout in full"),
        ("initiators silent", "1 initiator silent"),
        ("errors", "1 error"),
    ],
)
def test_one_event_is_told_of_in_the_singular_and_more_in_the_plural(what: str, one: str) -> None:
    assert output.events({what: 1}) == one
    assert output.events({what: 0}) == f"0 {what}"
    assert output.events({what: 2}) == f"2 {what}"


def test_events_are_told_in_a_row_in_their_order() -> None:
    assert output.events({}) == ""
    said = output.events({"accepted": 3, "logins failed": 1, "errors": 2})
    assert said == "3 accepted, 1 login failed, 2 errors"
