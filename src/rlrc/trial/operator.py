"""The dialogue with the operator: lines in, lines out, so that it works over ssh and in tests."""

import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime

from rlrc.errors import UserError, shorten
from rlrc.progress import say
from rlrc.trial.plan import Plan
from rlrc.trial.records import MOST_CHARACTERS, OUTCOMES, Attempt, Outcome, Records
from rlrc.trial.relay import Listening, Traffic

BEFORE = "Set the scene up and press Enter to begin (u corrects the last outcome, q quits): "
DURING = "Start the robot's program, and type the outcome at its end (s, f or v, then a note if you like): "
CORRECTED = "The right outcome (s, f or v, then a note if you like): "
LETTERS: dict[str, Outcome] = {letters: word for word in OUTCOMES for letters in (word, word[0])}
LEFT = "the session ended during the trial"
"""Note of a trial whose outcome nobody typed."""


def ask(question: str) -> str | None:
    """The line that is typed, or None where no more come."""
    print(question, end="", file=sys.stderr, flush=True)
    with open(0, "rb", buffering=0, closefd=False) as keyboard:  # whatever is typed, also where it is no UTF-8
        line = keyboard.readline()
    if not line.endswith(b"\n"):
        print(file=sys.stderr, flush=True)  # so that what is said next begins a line
    return line.decode(errors="replace").strip() if line else None


def now() -> str:
    """The time in ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def play(
    plan: Plan, addresses: Mapping[str, str], records: Records, robot: Listening, check: Callable[[], None]
) -> None:
    """Lead through the trials that are due, until all are done or the operator quits.

    Args:
        addresses: of the policies, by name.
        check: raises a UserError where a policy's server is gone or has changed; called before each trial.
    """
    say("s is success, f is failure, v is void: a void trial does not count and is repeated at the end of its block.")
    while True:
        due = records.due()
        if due is None:
            command = ask("All trials are done. Press Enter for the results (u corrects the last outcome): ")
        else:
            say(_announced(plan, records, due))
            command = ask(BEFORE)
        if command is None or command == "q" or (command == "" and due is None):
            return
        if command == "u":
            _correct(records)
        elif command or due is None:
            say(f"'{shorten(command)}' is no answer here")
        else:
            try:
                check()
            except UserError as error:
                say(str(error))
            else:
                _try(records, due, robot, addresses[plan.trials[due].policy])


def _announced(plan: Plan, records: Records, number: int) -> str:
    scene = plan.scene(plan.trials[number])
    again = " (again, since it was void)" if records.attempts_at(number) else ""
    lines = [f"\ntrial {records.counted + 1} of {len(plan.trials)}: {scene.name}{again}"]
    lines += [f"  instruction: {scene.instruction}"] if scene.instruction else []
    lines += [f"  layout: {line}" for line in scene.layout.splitlines()]
    return "\n".join(lines)


def _try(records: Records, number: int, robot: Listening, address: str) -> None:
    """One attempt at a trial. Where the session ends in it, it is void, so that nobody can drop what failed."""
    begun, started = now(), time.monotonic()

    def keep(outcome: Outcome, note: str, traffic: Traffic) -> None:
        attempt = Attempt(
            trial=number,
            attempt=records.attempts_at(number) + 1,
            outcome=outcome,
            note=note,
            begun=begun,
            seconds=round(time.monotonic() - started, 1),
            answers=traffic.answers,
            actions=traffic.actions,
            error=traffic.error,
        )
        records.add(attempt)
        asked = f"{attempt.answers} answers with {attempt.actions} actions in {attempt.seconds:.0f} s"
        say(f"kept: {outcome}, {asked}{f'; {attempt.error}' if attempt.error else ''}")

    with robot.trial(address) as traffic:
        try:
            outcome, note = _typed_outcome(DURING, traffic) or ("void", LEFT)
        except KeyboardInterrupt:
            keep("void", LEFT, traffic)
            raise
    keep(outcome, note, traffic)


def _typed_outcome(question: str, trial: Traffic | Attempt) -> tuple[Outcome, str] | None:
    """Return what the operator types; None where no more lines come."""
    while (line := ask(question)) is not None:
        word, _, note = line.partition(" ")
        note = shorten(note, MOST_CHARACTERS + 1)
        outcome = LETTERS.get(word.lower())
        if outcome is None:
            say(f"'{shorten(word)}' is no outcome: type s, f or v")
        elif len(note) > MOST_CHARACTERS:
            say(f"a note has at most {MOST_CHARACTERS} characters; type the outcome again")
        elif outcome != "void" and trial.answers == 0:
            say("the robot's program got no action in this trial, so it can only be void: type v")
        else:
            return outcome, note
    return None


def _correct(records: Records) -> None:
    """Ask for the last outcome again."""
    if not records.attempts:
        say("there is no outcome yet")
        return
    last = records.attempts[-1]
    say(f"the last outcome is {last.outcome}{f' ({last.note})' if last.note else ''}")
    if typed := _typed_outcome(CORRECTED, last):
        outcome, note = typed
        records.add(last.model_copy(update={"outcome": outcome, "note": note}))
        say(f"corrected: {outcome}")
