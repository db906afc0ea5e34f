"""The simulator, over as many seeds as the suite has time for, and proof that it would notice."""

import pytest

from iscsi.session import replay
from iscsi.target import connection
from shm.jit import JIT_DISABLED
from tests.robustness import sim_initiator, sim_operations
from tests.robustness.simulator import Failure, Simulation, main

STEPS = 300 if JIT_DISABLED else 1500
SEEDS = range(1, 5 if JIT_DISABLED else 61)


@pytest.mark.slow
@pytest.mark.parametrize("faults", [0.0, 0.004, 0.03])
def test_every_acknowledged_write_is_there_and_every_read_is_right(faults):
    happened = {}
    for seed in SEEDS:
        run = Simulation(seed, faults=faults).run(STEPS)
        for what, count in run.happened.items():
            happened[what] = happened.get(what, 0) + count
    assert happened["operations"] > len(SEEDS)
    if not faults:
        assert happened["logins"] <= 2 * len(SEEDS)
        assert not happened.get("connections lost")
    elif not JIT_DISABLED:
        wanted = {"cut", "half cut", "clock jumps", "aborts", "resets", "replayed", "damaged"}
        assert wanted <= {what for what, count in happened.items() if count}


@pytest.mark.soak
def test_many_seeds_and_long_runs():
    for seed in range(1000, 1600):
        Simulation(seed, faults=(0.004, 0.02, 0.05)[seed % 3]).run(6000)


def test_equal_seeds_give_equal_runs_and_others_do_not():
    digests = [Simulation(seed, faults=0.02).run(400).digest.digest() for seed in (5, 5, 6)]
    assert digests[0] == digests[1] != digests[2]


def fails(seeds=120, faults=0.03):
    """Whether some seed fails, and says how to see it again."""
    for seed in range(seeds):
        try:
            Simulation(seed, faults=faults).run(600)
        except Failure as failure:
            return f"--seed {seed} --steps 600 --faults {faults}" in str(failure)
    return False


@pytest.mark.slow
@pytest.mark.skipif(JIT_DISABLED, reason="the same without the compiler takes minutes")
class TestItNotices:
    def test_a_compare_and_write_that_is_sent_twice(self, monkeypatch):
        monkeypatch.setattr(sim_operations, "is_replayable", lambda cdb: True)
        assert fails()

    def test_a_write_that_passes_an_earlier_one_of_the_same_blocks(self, monkeypatch):
        monkeypatch.setattr(replay.Turn, "is_blocked", property(lambda turn: False))
        assert fails()

    def test_a_write_that_is_lost_with_its_connection(self, monkeypatch):
        end = sim_initiator.SimInitiator._completed

        def forget(self, completion):
            operation = self.open.get(completion.user_data)
            if completion.result < 0 and isinstance(operation, sim_operations.Write):
                operation.medium.end_write(operation.lba, operation.contents)
            end(self, completion)

        monkeypatch.setattr(sim_initiator.SimInitiator, "_completed", forget)
        assert fails()

    def test_a_digest_of_data_that_is_changed_before_it_is_sent(self, monkeypatch):
        monkeypatch.setattr(connection, "lend_copies", lambda *_: None)
        assert fails(faults=0.0)

    def test_an_abort_that_is_believed_before_it_is_answered(self, monkeypatch):
        manage = sim_initiator.SimInitiator.manage

        def early(self, function, now_ns, operation=None):
            manage(self, function, now_ns, operation)
            if operation is not None and self.open.get(operation.number) is operation:
                operation.medium.possible = [
                    {min(contents)} for contents in operation.medium.possible
                ]

        monkeypatch.setattr(sim_initiator.SimInitiator, "manage", early)
        assert fails()


def test_a_seed_is_replayed_from_the_command_line(capsys):
    outputs = []
    for _ in range(2):
        assert main(["--seed", "3", "--steps", "200"]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1]
    assert "digest" in outputs[0]
