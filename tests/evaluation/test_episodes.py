"""Episodes: order, failures, unreadable replies, what is recorded."""

from __future__ import annotations

import random
import threading
import time

import pytest
from fakes import Corridor, FakePolicy

from miniact.config.sections import PromptConfig
from miniact.envs import Turn
from miniact.evaluation.episodes import Episode, Move, PlayOptions, Tally, play_episodes
from miniact.method.prompts import Prompter


def play(tokenizer, script, tasks, form="plain", envs=None, tally=None):
    policy = FakePolicy(tokenizer, script)
    prompter = Prompter(tokenizer, PromptConfig(form=form, max_tokens=5000))
    envs = envs or [Corridor(), Corridor()]
    return policy, play_episodes(policy, prompter, envs, tasks, PlayOptions(), tally)


def test_every_task_is_played_once_in_the_order_asked(tokenizer):
    tasks = ["id/5", "id/2", "id/3", "id/7", "id/4"]
    _, episodes = play(tokenizer, lambda prompt, i: "east", tasks)
    assert [e.task_id for e in episodes] == tasks
    assert [len(e.moves) for e in episodes] == [5, 2, 3, 7, 4]
    assert all(e.success and e.stop == "solved" and e.score == 1.0 for e in episodes)


def test_the_number_of_environments_does_not_change_the_episodes(tokenizer):
    tasks = [f"id/{n}" for n in range(2, 8)]
    one = play(tokenizer, lambda p, i: "east", tasks, envs=[Corridor()])[1]
    many = play(tokenizer, lambda p, i: "east", tasks, envs=[Corridor() for _ in range(9)])[1]
    assert one == many


def test_a_failed_episode_ends_at_the_limit_and_shows_the_repeated_failure(tokenizer):
    _, (episode,) = play(tokenizer, lambda prompt, i: "jump", ["id/3"])
    assert not episode.success and episode.stop == "ended" and len(episode.moves) == 8
    assert episode.repeats_a_failure()


def test_three_unreadable_replies_end_an_episode_and_one_does_not(tokenizer):
    _, (lost,) = play(tokenizer, lambda p, i: "no tags here", ["id/3"], form="tags")
    assert lost.stop == "unparseable" and len(lost.moves) == 3 and not lost.success
    replies = iter(["no tags", *["<action>east</action>"] * 3])
    _, (saved,) = play(tokenizer, lambda p, i: next(replies), ["id/3"], form="tags")
    assert saved.success and [m.action for m in saved.moves] == ["", "east", "east", "east"]


def test_the_prompt_holds_what_happened_and_the_admissible_actions(tokenizer):
    policy, _ = play(tokenizer, lambda p, i: "east", ["id/2"], form="plain")
    assert "> east" not in policy.prompts[0] and "east, west" in policy.prompts[0]
    assert "you are in a corridor\n> east\nyou walk" in policy.prompts[1]


class Slow(Corridor):
    """A corridor that keeps its caller waiting, each time for another moment."""

    waits = True
    rng = random.Random(0)

    def reset(self, task_id: str) -> tuple[str, Turn]:
        time.sleep(self.rng.random() / 50)
        return super().reset(task_id)

    def step(self, action: str) -> Turn:
        time.sleep(self.rng.random() / 50)
        return super().step(action)


def test_who_answers_first_does_not_matter(tokenizer):
    tasks = [f"id/{n}" for n in (5, 2, 7, 3, 2, 6, 4, 2, 3, 5)]

    def script(prompt, i):
        return "east" if random.Random(prompt).random() < 0.8 else "west"

    at_once, plain = (
        play(tokenizer, script, tasks, envs=[kind() for _ in range(4)]) for kind in (Slow, Corridor)
    )
    assert at_once[1] == plain[1] and [e.task_id for e in plain[1]] == tasks
    assert at_once[0].prompts == plain[0].prompts  # each batch in the same order


def test_environments_that_wait_are_called_all_at_once(tokenizer):
    meeting = threading.Barrier(3, timeout=5)  # breaks unless three calls are under way together

    class Meeting(Corridor):
        waits = True

        def reset(self, task_id: str) -> tuple[str, Turn]:
            meeting.wait()
            return super().reset(task_id)

        def step(self, action: str) -> Turn:
            meeting.wait()
            return super().step(action)

        def admissible(self) -> tuple[str, ...]:
            meeting.wait()
            return super().admissible()

    tasks = ["id/3", "id/3 ", "id/ 3"]
    _, episodes = play(tokenizer, lambda p, i: "east", tasks, envs=[Meeting() for _ in range(3)])
    assert all(e.success for e in episodes)


@pytest.mark.parametrize("waits", [True, False])
def test_an_error_in_an_environment_ends_the_rollout(tokenizer, waits):
    class Broken(Corridor):
        def step(self, action: str) -> Turn:
            raise ZeroDivisionError

    Broken.waits = waits
    with pytest.raises(ZeroDivisionError):
        play(tokenizer, lambda p, i: "east", ["id/3", "id/4"], envs=[Corridor(), Broken()])


class Frail(Corridor):
    """Its simulator does not survive "die", nor the start of a corridor of length 0."""

    def reset(self, task_id: str) -> tuple[str, Turn]:
        if task_id.endswith("/0"):
            return "", Turn("it died", done=True, lost=True)
        return super().reset(task_id)

    def step(self, action: str) -> Turn:
        if action == "die":
            return Turn("it died", done=True, score=0.3, lost=True)
        return super().step(action)


def test_a_lost_episode_has_failed_and_the_next_one_starts(tokenizer):
    told: list[Episode] = []
    tally = Tally(told.append)
    tasks = ["id/0", "id/2", "id/3"]

    def script(prompt, i):
        return "die" if prompt.count("> east") == 2 else "east"

    _, episodes = play(tokenizer, script, tasks, envs=[Frail()], tally=tally)
    assert [(e.stop, e.success, e.last, len(e.moves)) for e in episodes] == [
        ("lost", False, "it died", 0),
        ("solved", True, "you walk", 2),
        ("lost", False, "it died", 3),
    ]
    assert episodes[2].score == 0.3 and told == episodes
    assert (tally.episodes, tally.solved, tally.lost) == (3, 1, 2)


def test_the_tally_tells_environment_and_model_apart(tokenizer):
    class Nap(Corridor):
        def step(self, action: str) -> Turn:
            time.sleep(0.02)
            return super().step(action)

    def think(prompt, i):
        time.sleep(0.04)
        return "east"

    tally = Tally()
    play(tokenizer, think, ["id/2", "id/3"], envs=[Nap(), Nap()], tally=tally)
    assert 5 * 0.02 <= tally.seconds["environment"] < 5 * 0.04 <= tally.seconds["model"]
    minutes = sum(tally.seconds.values()) / 60
    assert str(tally).startswith(f"2 episodes, {2 / minutes:.0f} a minute (environment 0.1 s")


def repeated(*moves: tuple[str, bool]) -> bool:
    return Episode("t", "t", [Move("", a, a, applied) for a, applied in moves]).repeats_a_failure()


def test_a_repeated_failure_is_the_same_action_three_times_running():
    assert repeated(("a", False), ("a", False), ("A.", False))
    assert not repeated(("a", False), ("a", False), ("b", False))
    assert not repeated(("a", False), ("a", True), ("a", False), ("a", False))
    assert not repeated(("a", True), ("a", True), ("a", True))
    assert repeated(("b", False), ("a", False), ("a", False), ("a", False))
