"""Which episodes there are, against RL4VLA's own numbering (fixtures recorded from its code)."""

from itertools import islice

import numpy as np
import pytest
from conftest import fixture_folder

from rlrc import envs
from rlrc.envs.putonplate import episodes
from rlrc.envs.putonplate.episodes import CATALOGUE, count_episodes, find_episode, numbered_episode, shuffled
from rlrc.errors import UserError

VARIANT_OF = {variant.task: name for name, variant in CATALOGUE.items()}


@pytest.fixture(scope="module")
def resets() -> dict[str, np.ndarray]:
    return dict(np.load(fixture_folder("maniskill/resets.npz"), allow_pickle=False))


def test_every_recorded_number_names_the_same_episode(resets: dict[str, np.ndarray]) -> None:
    for row in range(len(resets["env_id"])):
        variant, obj_set = VARIANT_OF[str(resets["env_id"][row])], str(resets["obj_set"][row])
        episode = numbered_episode(variant, obj_set, int(resets["episode_id"][row]))
        where = f"{variant} {obj_set} {resets['episode_id'][row]}"
        for name in ("object", "plate", "table"):
            assert getattr(episode, name) == resets[f"{name}_index"][row], where
        assert (episode.position, episode.yaw) == (resets["position_index"][row], resets["yaw_index"][row]), where
        names = str(resets["object_name"][row]), str(resets["plate_name"][row])
        assert episode.wording.format(object=names[0], plate=names[1]) == resets["instruction"][row], where
        if CATALOGUE[variant].extra == "texture":
            assert episode.texture == resets["texture_index"][row], where
            assert episode.strength == pytest.approx(resets["texture_ratio"][row]), where
        np.testing.assert_allclose(episode.plate_pose, resets["drop_plate_pose"][row], atol=1e-6, err_msg=where)
        itself = CATALOGUE[variant].extra == "object" and resets["extra_index"][row] == episode.object
        dropped = resets["drop_extra_pose" if itself else "drop_object_pose"][row]
        np.testing.assert_allclose(episode.object_pose, dropped, atol=1e-6, err_msg=where)
        if not np.isnan(resets["drop_extra_pose"][row]).any() and not itself:
            other = episode.other_object if episode.other_object is not None else episode.other_plate
            assert other == resets["extra_index"][row], where
            np.testing.assert_allclose(episode.other_pose, resets["drop_extra_pose"][row], atol=1e-6, err_msg=where)


def test_every_split_that_a_variant_is_said_to_have_can_be_played() -> None:
    world = envs.spec("putonplate")
    for variant in CATALOGUE:
        for split in world.splits_of(variant):
            assert find_episode(split, variant, 0).wording
    assert world.splits_of("main") == ("ind", "ood") and world.splits_of("single") == ("ood",)


def test_the_tables_of_positions_and_starts_are_the_recorded_ones() -> None:
    recorded = np.load(fixture_folder("maniskill/poses.npz"), allow_pickle=False)
    layouts = {"main": "pairs", "position": "pairs-and-ring", "multicarrot": "two-objects", "multiplate": "two-plates"}
    for name, layout in layouts.items():
        np.testing.assert_allclose(episodes._positions(layout), recorded[f"{name}_positions"], atol=1e-7)
    np.testing.assert_allclose(episodes._positions("two-objects"), recorded["positionchange_positions"], atol=1e-7)
    np.testing.assert_allclose(episodes._starts(), recorded["eepose_qpos_offset"], atol=1e-7)
    for name in ("main", "position"):
        yaws = [episodes._yaw_quaternion(n) for n in range(len(recorded[f"{name}_quaternions"]))]
        np.testing.assert_allclose(yaws, recorded[f"{name}_quaternions"][:, 0], atol=1e-7)


def test_the_sets_have_as_many_episodes_as_recorded() -> None:
    import json

    recorded = json.loads(fixture_folder("maniskill/constants.json").read_text())["env_ids"]
    assert set(recorded) == set(VARIANT_OF)
    for task, facts in recorded.items():
        for obj_set, sizes in facts["sizes"].items():
            assert count_episodes(VARIANT_OF[task], obj_set) == sizes["ltt"], (task, obj_set)


@pytest.mark.parametrize("total", [1, 2, 5, 16, 1000, 3136])
def test_the_order_is_a_permutation(total: int) -> None:
    assert sorted(shuffled(place, total, "key") for place in range(total)) == list(range(total))


def test_the_first_ids_are_a_fair_sample_of_all_combinations() -> None:
    drawn = [find_episode("ind", "main", n) for n in range(1024)]
    for counted, choices in (("object", 16), ("table", 16), ("yaw", 4)):
        counts = np.bincount([getattr(episode, counted) for episode in drawn], minlength=choices)
        expected = len(drawn) / choices
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert len(counts) == choices and chi_squared < 3 * choices, (counted, counts)  # p about 1e-5 (16), 1e-2 (4)
    assert len({(e.object, e.table, e.position, e.yaw) for e in drawn}) == 1024


def test_what_is_shown_is_not_what_is_asked() -> None:
    def key(episode_id: int) -> tuple[int, ...]:
        episode = find_episode("ind", "main", episode_id)
        return episode.object, episode.table, episode.position, episode.yaw

    asked = {key(n) for n in range(2000)}
    shown = {key(envs.FIRST_TRAINING_EPISODE + n) for n in range(20_000)}
    assert len(asked) == 2000 and len(shown) == 20_000 and not asked & shown


def test_splits_keep_to_their_objects_and_tables() -> None:
    for split, objects, tables in (("ind", range(16), range(16)), ("ood", range(16, 25), range(16, 21))):
        drawn = [find_episode(split, "main", n) for n in range(400)]
        assert {e.object for e in drawn} == set(objects) and {e.table for e in drawn} == set(tables)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (("train", "main", 0), "unknown split"),
        (("ood", "mian", 0), "unknown variant"),
        (("ind", "plate", 0), "out of distribution"),
        (("ind", "main", -1), "negative"),
    ],
)
def test_bad_episodes_are_one_clear_line(asked: tuple[str, str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_episode(*asked)


def test_the_world_offers_the_same_variants_as_the_embedded_one() -> None:
    ours, embedded = envs.spec("putonplate").variants, envs.spec("tabletop").variants
    assert list(islice(ours, len(embedded))) == list(embedded)
    assert {name: ours[name] for name in embedded} == embedded
    assert set(ours) - set(embedded) == {"single", "main-carrot", "main-image"}
