"""Machine facts are read or None, and can always be written down."""

import json
import os

from bench import machine


def test_facts_can_be_written_as_json_and_name_the_machine():
    core = min(os.sched_getaffinity(0))
    facts = json.loads(json.dumps(machine.facts([core])))
    assert facts["cpu_model"]
    assert facts["kernel"] == os.uname().release
    assert facts["pinned"][0]["cpu"] == core
    assert facts["versions"]["numpy"]
    assert facts["cpu_model"] in machine.summary(facts)


def test_an_unknown_cpu_has_no_facts():
    facts = machine.core_facts(99999)
    assert {facts[key] for key in facts if key != "cpu"} == {None}


def test_kernel_arguments_are_split_into_words():
    found = machine.kernel_arguments("quiet isolcpus=2-3 root=UUID=ab nohz_full=2-3")
    assert found == {"quiet": "", "isolcpus": "2-3", "root": "UUID=ab", "nohz_full": "2-3"}


def test_each_thing_that_spoils_a_figure_is_a_warning():
    facts = machine.facts() | {
        "hypervisor": True,
        "isolated": None,
        "cpus": 4,
        "load_average": [3.5, 1, 1],
        "pinned": [{"cpu": 2, "smt_siblings": "2,6", "governor": "powersave"}],
    }
    text = "\n".join(machine.warnings(facts))
    for part in ("virtual machine", "shares its core with 2,6", "powersave", "isolated", "3.50"):
        assert part in text


def test_a_quiet_isolated_machine_has_no_warning():
    facts = machine.facts() | {
        "hypervisor": False,
        "isolated": "2-3",
        "cpus": 8,
        "load_average": [0.1, 0, 0],
        "pinned": [{"cpu": 2, "smt_siblings": "2", "governor": "performance"}],
    }
    assert machine.warnings(facts) == []
