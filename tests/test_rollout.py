"""Episodes: order, failures, unreadable replies, what is recorded."""

from __future__ import annotations

from fakes import Corridor, FakePolicy

from miniact.config import PromptConfig
from miniact.prompts import Prompter
from miniact.rollout import Episode, Move, PlayOptions, play_episodes


def play(tokenizer, script, tasks, n_envs=2, form="plain"):
    policy = FakePolicy(tokenizer, script)
    prompter = Prompter(tokenizer, PromptConfig(form=form, max_tokens=5000))
    envs = [Corridor() for _ in range(n_envs)]
    return policy, play_episodes(policy, prompter, envs, tasks, PlayOptions())


def test_every_task_is_played_once_in_the_order_asked(tokenizer):
    tasks = ["id/5", "id/2", "id/3", "id/7", "id/4"]
    _, episodes = play(tokenizer, lambda prompt, i: "east", tasks)
    assert [e.task_id for e in episodes] == tasks
    assert [len(e.moves) for e in episodes] == [5, 2, 3, 7, 4]
    assert all(e.success and e.stop == "solved" and e.score == 1.0 for e in episodes)


def test_the_number_of_environments_does_not_change_the_episodes(tokenizer):
    tasks = [f"id/{n}" for n in range(2, 8)]
    one = play(tokenizer, lambda p, i: "east", tasks, n_envs=1)[1]
    many = play(tokenizer, lambda p, i: "east", tasks, n_envs=9)[1]
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


def repeated(*moves: tuple[str, bool]) -> bool:
    return Episode("t", "t", [Move("", a, a, applied) for a, applied in moves]).repeats_a_failure()


def test_a_repeated_failure_is_the_same_action_three_times_running():
    assert repeated(("a", False), ("a", False), ("A.", False))
    assert not repeated(("a", False), ("a", False), ("b", False))
    assert not repeated(("a", False), ("a", True), ("a", False), ("a", False))
    assert not repeated(("a", True), ("a", True), ("a", True))
    assert repeated(("b", False), ("a", False), ("a", False), ("a", False))
