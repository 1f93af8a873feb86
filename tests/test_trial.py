"""Trials on a robot: the order, the blind, what is kept, and what is refused."""

import json
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command import hear_signals
from kitchen import NAMES, SCENES, Bench, Marked, free_port, kitchen
from serving import served
from small_policies import CASES, look, make
from websockets.exceptions import ConnectionClosed

from rlrc.client import PolicyClient, ServerRefused
from rlrc.errors import UserError
from rlrc.lock import locked
from rlrc.stats import mcnemar, wilson
from rlrc.trial import operator


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def always(letter: str) -> Any:
    return lambda mark: letter


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A bench with two policies, of which the first succeeds."""
    with kitchen(Marked(1), Marked(2)) as policies:
        yield Bench(monkeypatch, tmp_path, policies, lambda mark: "s" if mark == 1 else "f fell over")


# -- the plan and the blind --------------------------------------------------------------------------------------------


def test_every_block_tries_each_policy_once_and_the_results_say_which_was_which(bench: Bench) -> None:
    summary = bench.run()
    assert summary["finished"] and summary["counted"] == summary["trials"] == 6
    acted = [NAMES[mark - 1] for mark in bench.marks]
    assert [attempt["policy"] for attempt in summary["attempts"]] == acted
    blocks = [tuple(sorted(acted[first : first + 2])) for first in (0, 2, 4)]
    assert set(blocks) == {("big", "small")}
    assert Counter(attempt["scene"] for attempt in summary["attempts"]) == {"left": 4, "right": 2}
    assert {attempt["scene"] for attempt in summary["attempts"][:4]} == {"left", "right"}  # second repeats come last
    assert all(attempt["answers"] == 3 and attempt["actions"] == 12 for attempt in summary["attempts"])
    big, small = summary["policies"]
    assert (big["rate"]["successes"], big["rate"]["n"], small["rate"]["successes"]) == (3, 3, 0)
    assert (big["rate"]["low"], big["rate"]["high"]) == pytest.approx(wilson(3, 3))
    (pair,) = summary["pairs"]
    assert (pair["only_first"], pair["only_second"], pair["comparison"]["difference"]) == (3, 0, -1)
    assert pair["comparison"]["p"] == pair["p_adjusted"] == pytest.approx(mcnemar([1, 1, 1], [0, 0, 0])) == 0.25
    assert pair["blocks_needed"] == 6  # six blocks that all fall to one side: p = 2 / 64
    assert json.loads((bench.out / "summary.json").read_text()) == summary


def test_nobody_is_told_which_policy_acts(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []
    bench.before = lambda: told.append(capsys.readouterr().err) or ""
    bench.run()
    while_playing = "".join(told[:-1])
    assert "trial 6 of 6" in while_playing and "layout: the mug is left" in while_playing
    assert not re.search(r"\b(big|small|checkpoint)\b", while_playing)
    assert not any(name in (bench.out / "attempts.jsonl").read_text() for name in NAMES)
    assert bench.greetings == [{"policy": "hidden"}] * 6


def test_the_order_is_random_and_a_seed_repeats_it(bench: Bench) -> None:
    bench.scenes.write_text("- {name: only, repeats: 30}")
    bench.before = lambda: None

    def order(**options: Any) -> list[str]:
        bench.run(**options)
        plan = json.loads((bench.out / "plan.json").read_text())
        (bench.out / "plan.json").unlink()
        return [trial["policy"] for trial in plan["trials"]]

    first, again, other, fresh = order(seed=1), order(seed=1), order(seed=2), order()
    assert first == again and len({tuple(first), tuple(other), tuple(fresh)}) == 3
    firsts = Counter(first[::2])
    assert set(firsts) == {"big", "small"} and min(firsts.values()) >= 5  # 30 fair coins


def test_a_robots_program_is_told_what_all_policies_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = {"family": "a", "cameras": ["front"], "horizon": 4, "execute": 2}
    shared = {"reset_pose": np.arange(3), "type": "hello", "timestamp": 5.0}
    one = {**shared, "spec": spec, "image_size": 224, "unnorm_key": "x"}
    two = {**shared, "spec": {**spec, "family": "b"}, "image_size": 96, "unnorm_key": "y", "more": 1}
    with kitchen(Marked(1, one), Marked(2, two)) as policies:
        bench = Bench(monkeypatch, tmp_path, policies, always("s"))
        bench.run()
    for greeting in bench.greetings:
        assert greeting.pop("timestamp") > 10**9
        assert greeting == {
            "spec": {**spec, "family": "hidden"},
            "reset_pose": [0, 1, 2],
            "type": "hello",
            "unnorm_key": "hidden",
        }


def test_served_policies_answer_through_the_relay_as_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = [make(CASES["oft-l1"]), make(CASES["oft-tokens"])]
    seen = look(policies[0])
    observation = {"images": {name: seen.images[name][0] for name in seen.images}, "prompt": seen.instruction[0]}
    observation["state"] = seen.state[0]
    chunks = [policy.act(seen[[0]])[0] for policy in policies]
    with served(policies[0]) as one, served(policies[1]) as two:
        bench = Bench(monkeypatch, tmp_path, [f"big={one.address}", f"small={two.address}"], always("s"))
        bench.scenes.write_text("- name: only")

        def act() -> str:
            with PolicyClient(bench.address) as robot:
                assert robot.metadata["spec"]["cameras"] == list(policies[0].spec.cameras)
                played = np.array([robot.act(observation) for _ in range(3)])
            bench.marks.append(int(np.argmin([abs(played - chunk).max() for chunk in chunks])))
            np.testing.assert_allclose(played, chunks[bench.marks[-1]], atol=1e-5)
            return "s"

        monkeypatch.setattr(bench, "act", act)
        summary = bench.run()
    assert sorted(bench.marks) == [0, 1]
    assert [attempt["policy"] for attempt in summary["attempts"]] == [NAMES[mark] for mark in bench.marks]


# -- the relay ---------------------------------------------------------------------------------------------------------


def test_between_trials_nobody_answers_and_a_trial_ends_the_connection(bench: Bench) -> None:
    robots: list[PolicyClient] = []
    refused: list[str] = []

    def before() -> str:
        with PolicyClient(bench.address) as robot, pytest.raises(ServerRefused) as told:
            robot.infer({})
        refused.append(str(told.value))
        robots.append(PolicyClient(bench.address))  # it connects now and asks later
        return ""

    def act() -> str:
        bench.marks.append(int(robots[-1].infer({})["actions"][0, 0]))
        return "s"

    bench.before, bench.act = before, act  # type: ignore[method-assign]
    bench.run()
    for robot in robots[:-1]:  # the last one connected after the last trial, and is closed with the port
        with pytest.raises(ConnectionClosed) as closed:
            robot._socket.recv(timeout=5)  # type: ignore[union-attr]
        assert closed.value.rcvd is not None and closed.value.rcvd.reason == "the trial has ended"
    assert sorted(bench.marks) == [1, 1, 1, 2, 2, 2] and len(robots) == 7
    assert set(refused) == {"no trial is running; the operator begins the next one"}


def test_the_key_is_asked_for_and_handed_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLRC_API_KEY", "a long one")
    policies = Marked(1), Marked(2)
    with kitchen(*policies) as given:
        bench = Bench(monkeypatch, tmp_path, given, always("s"))

        def act() -> str:
            with pytest.raises(ServerRefused, match="401"):
                PolicyClient(bench.address)
            with PolicyClient(bench.address, "a long one") as robot:
                robot.infer({})
            return "s"

        monkeypatch.setattr(bench, "act", act)
        bench.run()
    assert {policy.header for policy in policies} == {"Api-Key a long one"}


def test_a_key_in_a_policys_address_goes_with_another_for_the_robot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RLRC_API_KEY", "a long one")
    policies = Marked(1), Marked(2)
    with kitchen(*policies) as given:
        keyed = [text.replace("//", "//:its-own-key@") for text in given]
        bench = Bench(monkeypatch, tmp_path, keyed, always("s"))

        def act() -> str:
            with PolicyClient(bench.address, "a long one") as robot:
                robot.infer({})
            return "s"

        monkeypatch.setattr(bench, "act", act)
        bench.run()
    assert all(policy.header.startswith("Basic ") for policy in policies)


def test_what_a_policy_refuses_is_told_to_the_robot_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policies = Marked(1), Marked(2)
    with kitchen(*policies) as given:
        bench = Bench(monkeypatch, tmp_path, given, always("s"))
        ask = bench.act

        def act() -> str | None:
            for policy in policies:
                policy.refuses = "" if bench.marks or broken else "the camera is missing"
            if not broken and not bench.marks:
                with PolicyClient(bench.address) as robot, pytest.raises(ServerRefused, match="camera is missing"):
                    robot.infer({})
                broken.append(True)
                return "v"
            return ask()

        broken: list[bool] = []
        monkeypatch.setattr(bench, "act", act)
        summary = bench.run()
    first = summary["attempts"][0]
    assert (first["outcome"], first["answers"], first["error"]) == ("void", 0, "the camera is missing")
    assert summary["counted"] == 6 and len(summary["attempts"]) == 7


def test_policies_whose_actions_differ_are_found_out_at_their_first_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with kitchen(Marked(1), Marked(2, width=8)) as policies:
        bench = Bench(monkeypatch, tmp_path, policies, always("s"))
        with pytest.raises(ServerRefused, match=r"an action has \d numbers, and those before had \d"):
            bench.run()


# -- the operator ------------------------------------------------------------------------------------------------------


def test_a_void_trial_is_repeated_at_the_end_of_its_block(bench: Bench) -> None:
    typed = iter(["v wrong mug", "s", "f", "s", "s", "v", "V", "s", "f"])
    bench.outcome = lambda mark: next(typed)
    summary = bench.run()
    first, second, third, *_ = bench.marks
    assert first == third != second
    attempts = summary["attempts"]
    assert [attempt["block"] for attempt in attempts] == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert [attempt["attempt"] for attempt in attempts] == [1, 1, 2, 1, 1, 1, 1, 2, 2]
    assert attempts[0]["note"] == "wrong mug" and summary["counted"] == 6
    assert sum(policy["void"] for policy in summary["policies"]) == 3
    assert {bench.marks[7], bench.marks[8]} == {1, 2}  # both of the last block were void


def test_a_trial_in_which_the_robot_got_no_action_can_only_be_void(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    ask, typed = bench.act, iter(["s", "f", "success", "nonsense", "", "void no program"])
    bench.act = lambda: next(typed, None) or (ask() if len(lines_or_none(bench)) else "?")  # type: ignore[method-assign]
    bench.run()
    said = capsys.readouterr().err
    assert said.count("it can only be void: type v") == 3 and said.count("is no outcome: type s, f or v") >= 2
    assert lines(bench.out / "attempts.jsonl")[0]["note"] == "no program"


def lines_or_none(bench: Bench) -> list[dict[str, Any]]:
    path = bench.out / "attempts.jsonl"
    return lines(path) if path.exists() else []


def test_the_last_outcome_can_be_corrected(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.outcome = always("s")
    before = iter(["u", "", "u", "", "what", "", "", "", "", "u", ""])

    def answer(question: str) -> str | None:
        if question == operator.CORRECTED:
            return "f mistyped"
        return bench.act() if question == operator.DURING else next(before)

    monkeypatch.setattr(operator, "ask", answer)
    summary = bench.run()
    assert [attempt["outcome"] for attempt in summary["attempts"]] == ["failure", *["success"] * 4, "failure"]
    assert summary["attempts"][0]["note"] == "mistyped" and summary["attempts"][0]["answers"] == 3
    assert len(lines(bench.out / "attempts.jsonl")) == 8  # what was typed first is still to be read


def test_whoever_quits_goes_on_later_in_the_same_order(bench: Bench) -> None:
    plays = iter(["", "", "q"])
    bench.before = lambda: next(plays)
    assert bench.run() == {"finished": False, "trials": 6, "counted": 2}
    plan = (bench.out / "plan.json").read_bytes()
    assert not (bench.out / "summary.json").exists()
    bench.before = lambda: ""
    summary = bench.run()
    assert summary["finished"] and (bench.out / "plan.json").read_bytes() == plan
    assert [attempt["policy"] for attempt in summary["attempts"]] == [NAMES[mark - 1] for mark in bench.marks]
    bench.policies = [policy.replace("127.0.0.1", "localhost") for policy in bench.policies]
    with pytest.raises(UserError, match="names other policies or addresses"):
        bench.run()


def test_a_finished_plan_needs_no_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with kitchen(Marked(1), Marked(2)) as policies:
        bench = Bench(monkeypatch, tmp_path, policies, always("s"))
        first = bench.run()
    assert bench.run() == first and first["looks"] == []


def test_a_session_that_ends_within_a_trial_leaves_it_void(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.outcome = lambda mark: None  # type: ignore[assignment, return-value]
    plays = iter(["", None])
    bench.before = lambda: next(plays)
    assert bench.run()["counted"] == 0
    assert [line["note"] for line in lines(bench.out / "attempts.jsonl")] == ["the session ended during the trial"]

    def interrupt(mark: int) -> str:
        raise KeyboardInterrupt

    bench.outcome, bench.before = interrupt, lambda: ""
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    assert [line["outcome"] for line in lines(bench.out / "attempts.jsonl")] == ["void", "void"]
    assert not (bench.out / ".lock").exists()


def test_a_server_that_is_gone_is_told_before_the_trial_and_not_which_one_plays(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plays = iter(["", "", "q"])
    bench.before = lambda: next(plays)
    real, gone = operator.play, [True]

    def play(plan: Any, addresses: Any, records: Any, robot: Any, check: Any) -> None:
        def first_gone() -> None:
            check()
            if gone:
                gone.clear()
                raise UserError("policy 'small': nobody answers")

        real(plan, addresses, records, robot, first_gone)

    monkeypatch.setattr("rlrc.trial.play", play)
    assert bench.run()["counted"] == 1
    assert "policy 'small': nobody answers" in capsys.readouterr().err


def test_a_look_before_the_end_is_kept_and_told(bench: Bench) -> None:
    plays = iter(["", "", "q"])
    bench.before = lambda: next(plays)
    bench.run()
    early = bench.run(results=True)
    assert not early["finished"] and early["counted"] == 2 and [look["counted"] for look in early["looks"]] == [2]
    assert "before the end of the plan" in (bench.out / "trial.html").read_text()
    bench.before = lambda: ""
    summary = bench.run()
    assert summary["finished"] and [look["counted"] for look in summary["looks"]] == [2]
    page = (bench.out / "trial.html").read_text()
    assert "(after 2 trials)" in page and "before the end of the plan" not in page
    assert bench.run(results=True)["looks"] == summary["looks"]  # at the end nobody looks early


def test_a_killed_process_loses_nothing_that_was_typed(tmp_path: Path) -> None:
    """As an operator at a terminal: stdin, stderr, kill -9, and the same command again."""
    (tmp_path / "scenes.yaml").write_text(SCENES)
    port = free_port()
    with kitchen(Marked(1), Marked(2)) as policies:
        command = [sys.executable, "-m", "rlrc", "trial", "--policies", *policies, "--scenes", "scenes.yaml"]
        command += ["--port", str(port), "--out", "out", "--json"]
        marks: list[int] = []

        def session(ends_with: int | None) -> subprocess.Popen[str]:
            pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
            process = subprocess.Popen(command, text=True, cwd=tmp_path, preexec_fn=hear_signals, **pipes)
            assert process.stdin and process.stderr
            wait_for(process, "begin (")
            while True:
                process.stdin.write("\n")
                process.stdin.flush()
                wait_for(process, "like): ")
                if ends_with is not None and len(marks) == 2:
                    process.send_signal(ends_with)
                    process.wait(30)
                    return process
                with PolicyClient(f"ws://127.0.0.1:{port}") as robot:
                    marks.append(int(robot.infer({})["actions"][0, 0]))
                process.stdin.write("s\n" if marks[-1] == 1 else "f\n")
                process.stdin.flush()
                if len(marks) == 6:
                    wait_for(process, "results")
                    process.stdin.close()
                    return process
                wait_for(process, "quits): ")

        killed = session(signal.SIGKILL)
        assert killed.returncode == -signal.SIGKILL
        assert len(lines(tmp_path / "out" / "attempts.jsonl")) == 2
        stopped = session(signal.SIGTERM)
        assert stopped.returncode == 143 and stopped.stderr
        assert "the same command continues from here" in stopped.stderr.read()
        last = session(None)
        assert last.stdout
        summary = json.loads(last.stdout.read())
        assert last.wait(60) == 0
    counted = [attempt for attempt in summary["attempts"] if attempt["outcome"] != "void"]
    assert [attempt["policy"] for attempt in counted] == [NAMES[mark - 1] for mark in marks]
    assert len(summary["attempts"]) == 7  # SIGTERM left one void, SIGKILL none
    assert summary["policies"][0]["rate"]["successes"] == 3 and summary["policies"][1]["rate"]["successes"] == 0


def wait_for(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr
    said = ""
    while text not in said:
        character = process.stderr.read(1)
        assert character, said
        said += character


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenes", "line"),
    [
        ("", "a list of scenes is needed"),
        ("[]", "a list of scenes is needed"),
        ("name: left", "a list of scenes is needed"),
        ("- name: [", "not valid YAML"),
        ("- left", "scene 1: "),
        ("- {layout: left}", "scene 1: missing key 'name'"),
        ("- {name: left, colour: red}", "scene 1: unknown key 'colour' (known: name, instruction, layout, repeats)"),
        ("- {name: left}\n- {name: left}", "two scenes are called 'left'"),
        ("- {name: left, repeats: 0}", "scene 1: 'repeats'"),
        ("- {name: left, repeats: 1001}", "these are 2,002 trials, and a plan has at most 2,000"),
    ],
)
def test_wrong_scenes_are_one_line_and_leave_nothing(bench: Bench, scenes: str, line: str) -> None:
    bench.scenes.write_text(scenes)
    with pytest.raises(UserError) as told:
        bench.run()
    assert line in str(told.value) and "\n" not in str(told.value)
    assert not bench.out.exists()


@pytest.mark.parametrize(
    ("policies", "line"),
    [
        (["a=ws://x:1"], "two policies or more"),
        ([], "two policies or more"),
        (["a=ws://x:1", "a=ws://x:2"], "two policies have the name a"),
        (["a=ws://x:1", "b=ws://x:1"], "two policies have the address ws://x:1"),
        (["ws://x:1", "b=ws://x:2"], "is no NAME=ADDRESS"),
        (["a=http://x:1", "b=ws://x:2"], "is no NAME=ADDRESS"),
        (["a/b=ws://x:1", "b=ws://x:2"], "is no NAME=ADDRESS"),
    ],
)
def test_wrong_policies_are_one_line(bench: Bench, policies: list[str], line: str) -> None:
    bench.policies = policies
    with pytest.raises(UserError, match=line):
        bench.run()
    assert not bench.out.exists()


def refused(bench: Bench, line: str) -> None:
    with pytest.raises(UserError, match=line) as told:
        bench.run()
    assert "\n" not in str(told.value)


def test_servers_that_are_none_or_do_not_fit_are_one_line(bench: Bench) -> None:
    right, port = bench.policies, free_port()
    bench.policies = [right[0], f"small=ws://127.0.0.1:{port}"]
    with pytest.raises(UserError, match=rf"policy 'small': ws://127.0.0.1:{port}: nobody answers"):
        bench.run()
    spec = {"cameras": ["front"], "action": [{"name": "x"}, {"name": "y"}], "horizon": 8, "execute": 8}
    for other, line in (
        ({"action": [{"name": "x"}]}, r'differ in spec.action: \[{"name": "x"}, {"name": "y"}\] and'),
        ({"action": [{"name": "x"}, {"name": "z"}]}, 'differ in spec.action.1.name: "y" and "z"'),
        ({"cameras": ["wrist"]}, "differ in spec.cameras"),
        ({"horizon": 4}, "differ in spec.horizon: 8 and 4"),
    ):
        with kitchen(Marked(1, {"spec": spec}), Marked(2, {"spec": {**spec, **other}})) as differing:
            bench.policies = differing
            refused(bench, line)
    assert not bench.out.exists()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bench.policies, bench.port = right, taken.getsockname()[1]
        with pytest.raises(UserError, match="cannot be listened on"):
            bench.run()
    assert not bench.out.exists()


def test_another_plan_is_not_continued(bench: Bench) -> None:
    with pytest.raises(UserError, match="there are no trials here yet"):
        bench.run(results=True)
    plays = iter(["", "q"])
    bench.before = lambda: next(plays)
    bench.run(seed=3)
    bench.before = lambda: "q"
    with pytest.raises(UserError, match="--seed is another one"):
        bench.run(seed=4)
    bench.scenes.write_text(SCENES.replace("left", "far left"))
    with pytest.raises(UserError, match="lists other scenes"):
        bench.run()
    bench.scenes.write_text(SCENES)
    with kitchen(Marked(1), Marked(3)) as others:
        plan = bench.out / "plan.json"
        kept = plan.read_text()
        old = json.loads(kept)["policies"]
        new = dict(policy.split("=") for policy in others)
        plan.write_text(kept.replace(old["big"], new["big"]).replace(old["small"], new["small"]))
        right, bench.policies = bench.policies, others
        with pytest.raises(UserError, match="policy 'small': its server says another 'policy'"):
            bench.run()
        plan.write_text(kept)
        bench.policies = right
    with locked(bench.out), pytest.raises(UserError, match="is being written by process"):
        bench.run()
    assert bench.run()["counted"] == 1


def test_damaged_files_are_one_line(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    plays = iter(["", "", "", "q"])
    bench.before = lambda: next(plays)
    bench.run()
    attempts, plan = bench.out / "attempts.jsonl", bench.out / "plan.json"
    whole, fixed = attempts.read_text(), plan.read_text()
    first, _, third = whole.splitlines(keepends=True)
    bench.before = lambda: "q"
    for text, line in (
        (first + third, "line 2: attempt 1 at trial 2 was not due"),
        (first + "{}\n", "line 2: missing key 'trial'"),
        (first + "rubbish\n", "line 2: not valid JSON"),
    ):
        attempts.write_text(text)
        with pytest.raises(UserError, match=line):
            bench.run()
    attempts.write_text(whole + '{"trial": 3, "att')
    assert bench.run()["counted"] == 3 and attempts.read_text() == whole
    assert "the last line was cut off" in capsys.readouterr().err.replace("\n", " ")
    for text, line in (
        ("{", "not valid JSON"),
        (fixed.replace('"big"', '"other"', 1), "the greetings are not|is not one trial of each policy"),
        (fixed.replace('"scene": "left"', '"scene": "none"', 1), "is not one trial of each policy in one scene"),
    ):
        plan.write_text(text)
        with pytest.raises(UserError, match=line):
            bench.run()
    plan.unlink()
    with pytest.raises(UserError, match="holds something else"):
        bench.run()
    bench.out = bench.scenes
    with pytest.raises(UserError, match="this is a file, and a folder would be written here"):
        bench.run()


def test_a_plan_of_which_nothing_was_tried_makes_way(bench: Bench) -> None:
    bench.before = lambda: "q"
    bench.run(seed=1)
    bench.scenes.write_text("- name: other")
    assert bench.run(seed=2)["trials"] == 2
    with pytest.raises(UserError, match="there are no trials here yet"):
        bench.run(results=True)
    (bench.out / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="holds something else"):
        bench.run()


@pytest.mark.parametrize(
    ("greeting", "reason"), [({"x": float("nan")}, "JSON"), ({"x": b"bytes"}, "a value of type bytes")]
)
def test_a_greeting_that_cannot_be_kept_is_one_line(bench: Bench, greeting: Any, reason: str) -> None:
    with kitchen(Marked(1), Marked(2, greeting)) as policies:
        bench.policies = policies
        refused(bench, f"policy 'small': the server's greeting cannot be kept as JSON .*{reason}")
    assert not bench.out.exists()
