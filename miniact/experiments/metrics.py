"""What every logged figure means: the one place where metrics are defined.

    TRAINING     the fields of metrics.jsonl, by the stages that log them
    EVALUATION   the figures of eval.json and results.json, by their path in the file

docs/reference.md lists them, and a test compares them with what is really logged. To log
another metric, write it in the stage and define it here.
"""

from __future__ import annotations

from dataclasses import dataclass

from miniact.config.sections import STAGES

IMITATION = ("il", "choice_sft", "reflect")  # cross-entropy on given replies
GRPO = ("act", "rl")  # reward of sampled answers


@dataclass(frozen=True)
class Metric:
    """One logged figure. In `name`, a word in CAPITALS stands for any word."""

    name: str
    unit: str  # and range
    meaning: str
    healthy: str = ""  # what a good curve looks like, where that is known
    stages: tuple[str, ...] = ()  # TRAINING: who logs it
    label: str = ""  # EVALUATION: its name in the tables of results

    @property
    def about(self) -> str:
        """Who logs it, in which unit."""
        stages = "all stages" if self.stages == STAGES else ", ".join(self.stages)
        shown = f'"{self.label}" in tables' if self.label else ""
        return "; ".join(part for part in (stages, self.unit, shown) if part)


_SHARE, _COUNT = "share, 0..1", "count, ≥ 0"

TRAINING = (
    Metric("stage", "text", "number and name of the stage, for example 2-act", stages=STAGES),
    Metric("step", _COUNT, "number of the step within the stage, from 0", stages=STAGES),
    Metric("time", "seconds", "when the step was logged, since 1970 (Unix time)", stages=STAGES),
    Metric(
        "loss",
        "nats per reply token, ≥ 0",
        "cross-entropy L = −1/N · Σ log π(token | prompt, tokens before), over the N tokens of the "
        "batch's replies, their end tokens included",
        "falls fast, then slowly; close to 0 the replies are known by heart",
        IMITATION,
    ),
    Metric(
        "loss",
        "any sign",
        "GRPO loss of the last update: L = Σ w·[−min(ρ·A, clip(ρ)·A) + β·k3], over all tokens; the "
        "weights w follow from `variant`",
        "near 0 with variant grpo, updates: 1 and β = 0, however well it learns: watch `reward`",
        GRPO,
    ),
    Metric(
        "loss",
        "nats, ≥ 0",
        "DPO loss: the mean over pairs of −log σ(β·m); see `margin`",
        "starts at ln 2 = 0.693 and falls",
        ("dpo",),
    ),
    Metric(
        "margin",
        "nats",
        "mean over the batch's pairs of m = d(a⁺) − d(a⁻) with d = log π_θ − log π_ref of a whole "
        "reply, before the update",
        "starts at 0 and rises",
        ("dpo",),
    ),
    Metric(
        "correct",
        _SHARE,
        "pairs whose margin m is over 0, before the update",
        "0 in the first step, where every m is 0, then soon above a half",
        ("dpo",),
    ),
    Metric(
        "correct",
        _SHARE,
        "sampled answers that choose the expert's action; an unparseable one is wrong",
        "starts near chance (`valid` / number of candidates) and rises; on household 0.44 → 0.74",
        ("act",),
    ),
    Metric(
        "correct",
        _SHARE,
        "sampled answers whose action is the expert's, after canonicalisation",
        "rises",
        ("rl",),
    ),
    Metric(
        "reward",
        "0..1",
        "mean reward of the sampled answers, before the update: r = (1 − w)·correct + w·valid with "
        "w = `format_weight`; in rl `admissible_credit` counts for a wrong but admissible action",
        "rises; equals `correct` where w and the credit are 0, as they are by default",
        GRPO,
    ),
    Metric(
        "valid",
        _SHARE,
        "sampled answers from which one choice (act) or one action (rl) could be read",
        "rises towards 1; what `correct` gains beyond it is judgement, not format",
        GRPO,
    ),
    Metric(
        "live_groups",
        _SHARE,
        "groups with unequal rewards, the only ones with a gradient: 1 − zero_variance",
        "well above 0; at 0 (and β = 0) the step updates nothing",
        GRPO,
    ),
    Metric(
        "zero_variance",
        _SHARE,
        "groups whose G rewards are all equal: every A_i is 0, so they are skipped where β = 0",
        "about a half on household; near 1 nothing is learned: raise `group_size` or "
        "`temperature`, or start from a policy that finds the prompts neither trivial nor hopeless",
        GRPO,
    ),
    Metric(
        "all_correct",
        _SHARE,
        "groups in which every answer is right",
        "rises; near 1 the stage has nothing left to teach",
        GRPO,
    ),
    Metric(
        "all_wrong",
        _SHARE,
        "groups in which no answer is right",
        "falls; if it stays high, the prompts are too hard for the policy that the stage got",
        GRPO,
    ),
    Metric(
        "entropy",
        "nats per token, ≥ 0",
        "estimate of the policy's entropy at the sampling temperature: the mean of −log π over all "
        "sampled tokens",
        "falls slowly; at 0 all answers to a prompt are alike and `zero_variance` is 1",
        GRPO,
    ),
    Metric(
        "reply_tokens",
        "tokens, 1..max_tokens",
        "mean length of the sampled answers, the end token included",
        "steady without thinking; with it, it may grow, as long as `cut_off` stays near 0",
        GRPO,
    ),
    Metric(
        "cut_off",
        _SHARE,
        "sampled answers that reached `max_tokens` before their end token",
        "near 0; otherwise raise `max_tokens`: what is cut off can rarely be read",
        GRPO,
    ),
    Metric(
        "ratio",
        "≥ 0",
        "mean of ρ = π_θ / π_old over the tokens trained on, weighted as in the loss; last update",
        "1 with updates: 1, up to rounding; with more updates it stays near 1",
        GRPO,
    ),
    Metric(
        "clip_fraction",
        _SHARE,
        "tokens trained on whose ρ is clipped, so that they have no gradient (from `clip_low` and "
        "`clip_high`), weighted as in the loss; last update",
        "0 with updates: 1; if it grows from step to step, lower `lr` or `updates`",
        GRPO,
    ),
    Metric(
        "kl",
        "nats per token, ≥ 0",
        "mean of k3 = exp(δ) − δ − 1 with δ = log π_ref − log π_θ, weighted as in the loss: an "
        "estimate of KL(π_θ ‖ π_ref); last update; only where β > 0",
        "starts at 0 and rises slowly",
        GRPO,
    ),
    Metric(
        "tokens",
        "tokens",
        "tokens that passed the model in this step: every prompt once (P) and every reply (Σ|y|). "
        "In act and rl once for sampling, once for each update (skipped groups not at all, equal "
        "answers of a group once) and, where β > 0, once for scoring by π_ref; in dpo three times: "
        "scored by π_θ and by π_ref, and trained on",
        "steady; its sum is what a recipe costs in a comparison",
        STAGES,
    ),
    Metric(
        "grad_norm",
        "≥ 0",
        "L2 norm of the whole gradient before it is scaled down to `max_grad_norm`; last update; "
        "in act and rl only in steps that update",
        "steady or falling; if it climbs by orders of magnitude, lower `lr`",
        STAGES,
    ),
    Metric(
        "lr",
        "≥ 0",
        "learning rate of this step: rises over `warmup` steps, then follows `schedule`",
        stages=STAGES,
    ),
    Metric(
        "dropped_turns",
        _COUNT,
        "turns of history that the step's prompts do not show, summed over prompts: those beyond "
        "`prompt.history`, and the oldest that did not fit `prompt.max_tokens`",
        "0, or known and accepted: what is not shown cannot be learned from",
        STAGES,
    ),
)

_RATE = "rate"

EVALUATION = (
    Metric(
        "splits.SPLIT.success",
        _RATE,
        "episodes of this split that the policy solves within the environment's limit of steps",
        label="success",
    ),
    Metric(
        "splits.SPLIT.score",
        "0..1",
        "mean score that the environment gives at the end of an episode; for those that only know "
        "solved or not, the same as success",
        label="mean score",
    ),
    Metric("splits.SPLIT.steps", "actions, ≥ 0", "mean length of the episodes, failed ones too"),
    Metric(
        "splits.SPLIT.repeats_failure",
        _RATE,
        "episodes in which the same action fails three times running: the paper's stuck agent",
        label="stuck",
    ),
    Metric(
        "splits.SPLIT.failed_actions",
        _RATE,
        "actions, of all actions of all episodes, that did not apply and changed nothing; an "
        "unparseable reply is one of them",
    ),
    Metric(
        "splits.SPLIT.unparseable",
        _RATE,
        "replies, of all replies of all episodes, that held no single action; three running end "
        "the episode",
    ),
    Metric(
        "splits.SPLIT.dropped_turns",
        _COUNT,
        "turns of history that the episodes' prompts do not show, summed over prompts",
    ),
    Metric(
        "splits.SPLIT.lost",
        _COUNT,
        "episodes whose simulator died or hung; they count as failed",
    ),
    Metric(
        "next_action.accuracy",
        _RATE,
        "held-out expert states in which the policy's action is the expert's, after "
        "canonicalisation; an unparseable reply is wrong",
        label="next action",
    ),
    Metric("next_action.valid", _RATE, "replies there from which one action could be read"),
    Metric(
        "next_action.dropped_turns",
        _COUNT,
        "turns of history that these prompts do not show, summed over prompts",
    ),
    Metric(
        "judgement.accuracy",
        _RATE,
        "right choices among all held-out questions, each asked with the expert's action in every "
        "position; an unparseable answer is wrong; chance is 1 / number of candidates",
        label="judgement",
    ),
    Metric(
        "judgement.valid",
        _RATE,
        "answers from which one choice could be read",
        label="valid answers",
    ),
    Metric(
        "judgement.given_valid",
        _RATE,
        "right choices among the valid answers: judgement without the part that is format",
        label="right, given valid",
    ),
    Metric(
        "judgement.expert_POSITION",
        _RATE,
        "right choices where the expert's action is shown first, second, … sixth: far apart, they "
        "show a position bias",
        label="expert POSITION",
    ),
    Metric(
        "judgement.consistent",
        _RATE,
        "questions in which the same action is chosen in every order, right or wrong",
    ),
    Metric(
        "judgement.implicit",
        _RATE,
        "questions in which log π(a⁺ | s) is above that of every alternative, as replies to the "
        "action prompt: the judgement that acting itself implies",
        label="implicit",
    ),
    Metric(
        "judgement.followed",
        _RATE,
        "answers that choose what the injected wrong rationale argues for; only with "
        "`eval.intervene: wrong`",
        label="wrong rationale followed",
    ),
    Metric(
        "judgement.dropped_turns",
        _COUNT,
        "turns of history that the critic's prompts do not show, summed over prompts",
    ),
)
