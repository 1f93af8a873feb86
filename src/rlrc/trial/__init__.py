"""Trials of served policies on a real robot, blind and paired.

    rlrc trial --policies big=ws://127.0.0.1:8000 small=ws://127.0.0.1:8001 --scenes scenes.yaml --out runs/kitchen

The robot's program connects to one port, whose answers come from the policy of the trial that runs. The operator sets
scenes up and types outcomes, and learns at the end which policy was which. The folder holds `plan.json`, written before
the first trial, `attempts.jsonl`, which grows with every outcome, `looks.jsonl` if somebody looked before the end, and
then `summary.json` and `trial.html`.
"""

import os
from pathlib import Path
from typing import Any

from rlrc import ownership
from rlrc.configs.trial import TrialConfig
from rlrc.errors import UserError
from rlrc.files import write_json, write_text
from rlrc.lock import locked
from rlrc.port import require_resolvable, warn_if_open
from rlrc.progress import say
from rlrc.reading import lies_there, read_model
from rlrc.served import API_KEY
from rlrc.tables import print_table
from rlrc.trial import greetings
from rlrc.trial.operator import now, play
from rlrc.trial.page import page
from rlrc.trial.plan import Plan, new_plan, read_scenes, require_same
from rlrc.trial.records import Look, Records
from rlrc.trial.relay import Relay, listening
from rlrc.trial.results import evaluate, pair_table, policy_table

PLAN, ATTEMPTS, LOOKS = "plan.json", "attempts.jsonl", "looks.jsonl"
SUMMARY, PAGE = "summary.json", "trial.html"


def check(config: TrialConfig) -> None:
    """Look at the scenes and the address; nobody is connected to.

    Raises:
        UserError: the file is damaged, or the address is not there.
    """
    read_scenes(config.scenes)
    require_resolvable(config.host)


def trial(config: TrialConfig, out: Path) -> dict[str, Any]:
    """Go through the plan, from where it was left, until its end or until the operator quits.

    Returns:
        The results at the end or with `results`, and else how many trials are done.

    Raises:
        UserError: the scenes, the servers or the folder are not there, or do not fit each other.
    """
    check(config)
    ownership.require_plain(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: this is a file, and a folder would be written here; choose another --out")
    with ownership.made(out), locked(out):
        plan = _kept_plan(config, out)
        if plan is None or not (config.results or _records(plan, out).due() is None):
            plan = _play(config, plan, out)
        records = _records(plan, out)
        if records.due() is not None:
            if not config.results:
                say(f"{records.counted} of {len(plan.trials)} trials are done; the same command continues")
                return {"finished": False, "trials": len(plan.trials), "counted": records.counted}
            records.add_look(Look(at=now(), counted=records.counted))
        return _publish(plan, records, out)


def _kept_plan(config: TrialConfig, out: Path) -> Plan | None:
    """The plan in the folder, which must be that of the command; None where no trial of it has been tried yet.

    Raises:
        UserError: it holds another plan or something else, or results are asked for and there are none.
    """
    is_begun = lies_there(out / ATTEMPTS)
    if is_begun and lies_there(out / PLAN):
        plan = read_model(out / PLAN, Plan)
        require_same(plan, config, read_scenes(config.scenes), out)
        return plan
    if is_begun or ownership.foreign(out, (PLAN, ownership.LOCK)) is not None:
        raise UserError(f"{out} holds something else; choose another --out, or delete it first")
    if config.results:
        raise UserError(f"{out}: there are no trials here yet; leave --results out to begin them")
    return None


def _records(plan: Plan, out: Path) -> Records:
    return Records(plan, out / ATTEMPTS, out / LOOKS)


def _play(config: TrialConfig, plan: Plan | None, out: Path) -> Plan:
    """Ask the servers, open the port and lead the operator through the plan, which is made if there is none."""
    key = os.environ.get(API_KEY) or None
    found = greetings.ask(config.addresses, key)
    greetings.require_alike(found)
    first = found if plan is None else plan.greetings
    greetings.require_unchanged(first, found)
    with listening(Relay(greetings.shared(found), key), config.host, config.port) as robot:
        if plan is None:
            plan = new_plan(config, read_scenes(config.scenes), found)
            write_json(out / PLAN, plan.model_dump(mode="json"))
        if hidden := greetings.withheld(found):
            say(f"the servers differ in {', '.join(hidden)}; the robot's program is not told these")
        warn_if_open(robot.address, key)
        say(f"the robot's program connects to ws://{robot.address}")

        def check_servers() -> None:
            greetings.require_unchanged(first, greetings.ask(config.addresses, key))

        play(plan, config.addresses, _records(plan, out), robot, check_servers)
    return plan


def _publish(plan: Plan, records: Records, out: Path) -> dict[str, Any]:
    """Write and print the results."""
    results = evaluate(plan, records)
    write_json(out / SUMMARY, results.to_json())
    write_text(out / PAGE, page(out.resolve().name, results))
    print_table("Success", *policy_table(results))
    if results.pairs:
        print_table("Compared", *pair_table(results))
    if results.looks:
        say("somebody looked at the results before the end, so the p-values and intervals are too optimistic")
    say(f"{out / PAGE}: every trial with its policy")
    return results.to_json()
