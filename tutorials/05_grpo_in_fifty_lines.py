# %% [markdown]
# # 05 · GRPO in fifty lines, then ours
#
# **The question.** A policy answers, and all that anyone can say of an answer is a number. How does
# that number become a gradient?
#
# **The answer in one line.** Compare each answer with the others to the same prompt, and make its
# tokens likelier or less likely by the difference. For one prompt x and G sampled answers
# $y_1 \dots y_G$ with rewards $r_1 \dots r_G$:
#
# $$A_i=\frac{r_i-\bar r}{\operatorname{std}(r)+\varepsilon},\qquad
#   \rho_{it}=\frac{\pi_\theta(y_{it}\mid x,y_{i<t})}{\pi_{old}(y_{it}\mid x,y_{i<t})}$$
#
# $$L=\sum_i\sum_t w_{it}\Big[-\min\big(\rho_{it}A_i,\ \operatorname{clip}(\rho_{it},1-\epsilon,1+\epsilon)A_i\big)
#   +\beta\,\big(e^{\delta_{it}}-\delta_{it}-1\big)\Big],\qquad
#   \delta_{it}=\log\pi_{ref}-\log\pi_\theta$$
#
# This page writes the three parts (advantage, weight, loss) by hand, one after the other, and holds
# each against the package's. Then it trains with them: first a policy that is a table of 24 numbers,
# then the tiny language model, on which one whole step of the package must agree with plain
# transformers and PEFT.

# %%
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from aside.drawings import draw_grpo
from miniact.backends.models import find_model
from miniact.backends.protocol import load_policy
from miniact.config.sections import GRPOConfig, ModelConfig, PromptConfig
from miniact.data.trajectories import collect
from miniact.envs import make_env
from miniact.method.grpo import advantages, grpo_step, make_group, token_weights
from miniact.method.losses import GRPOLoss
from miniact.method.prompts import Prompter
from miniact.method.rewards import action_reward
from miniact.types import Scored, Tokens

SEED = 5

# %% [markdown]
# ## 1 · The advantage: better than its group?
#
# There is no value network. A group is its own baseline: an answer counts by how much it is above the
# mean of the answers to the same prompt. ε only keeps the division finite.


# %%
def advantages_by_hand(reward_QG):
    """Q prompts, G answers to each."""
    centred_QG = reward_QG - reward_QG.mean(1, keepdim=True)
    return centred_QG / (reward_QG.std(1, keepdim=True) + 1e-4)


reward_QG = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]])
for reward_G, advantage_G in zip(reward_QG, advantages_by_hand(reward_QG)):
    assert np.allclose(advantage_G, advantages(reward_G.numpy()), atol=1e-6)
    print("rewards", reward_G.int().tolist(), " advantages", advantage_G.numpy().round(2))

# %% [markdown]
# A rare success counts more than a common one, and so does a rare failure. The last group teaches
# nothing: all its advantages are 0. Neither would a group of failures. Such groups are called *dead*,
# the others *live*.
#
# ## 2 · The weight: what does a token count?
#
# The loss is a sum over tokens, and $w_{it}$ says what a token counts. Three conventions are in use.
# Take four answers of unequal length, in a config that allows ten tokens:

# %%
lengths, most = np.array([2, 4, 4, 8]), 10
B = len(lengths)
weight_by_hand = {
    "grpo": 1 / (B * lengths),  # mean over an answer's tokens, then over answers
    "dapo": np.full(B, 1 / lengths.sum()),  # mean over all tokens
    "dr_grpo": np.full(B, 1 / (B * most)),  # a constant
}
print("length of the answer", "".join(f"{n:8d}" for n in lengths))
for variant, weight_B in weight_by_hand.items():
    assert np.allclose(weight_B, token_weights(lengths, variant, most))
    print(f"{variant:8} a token    ", "".join(f"{w:8.3f}" for w in weight_B))
    print(f"{'':8} an answer  ", "".join(f"{w:8.3f}" for w in weight_B * lengths))

# %% [markdown]
# Under `grpo` every answer has the same say, so a token of a long answer counts less: a wrong answer
# is punished less per token the longer it is. Under `dapo` and `dr_grpo` every token counts the same,
# so a long answer has more say. Within one batch these two differ by a factor only; but `dapo`'s
# changes from batch to batch, and `dr_grpo`'s never does.
#
# ## 3 · The loss
#
# The equation, term by term. The clip takes the slope away from a token that has already moved by more
# than ϵ = 0.2 in the direction it should go, which matters from the second update on one sampled
# batch. β weighs the KL term, which holds the policy near $\pi_{ref}$, the one that the stage began
# with.


# %%
CLIP = 0.2


def loss_by_hand(logp, old, ref, advantage, weight, beta=0.05):
    ratio = (logp - old).exp()
    gain = torch.minimum(ratio * advantage, ratio.clip(1 - CLIP, 1 + CLIP) * advantage)
    delta = ref - logp
    k3 = delta.exp() - delta - 1
    return (weight * (beta * k3 - gain)).sum()


# %% [markdown]
# The package's loss takes the array library as its first argument; then numpy, torch and MLX share one
# body. On numbers drawn at random:

# %%
rng = torch.Generator().manual_seed(SEED)
logp, old, ref = -torch.rand(3, 20, generator=rng)  # log-probabilities of 20 tokens
advantage, weight = torch.randn(20, generator=rng), torch.rand(20, generator=rng)
by_hand = loss_by_hand(logp, old, ref, advantage, weight)
by_package, _ = GRPOLoss(beta=0.05)(torch, logp, Tokens(weight, advantage, old, ref))
assert torch.isclose(by_hand, by_package)
print(f"loss {by_hand:.5f} by hand, {by_package:.5f} by the package")

# %% [markdown]
# Why $k_3=e^\delta-\delta-1$? It is never negative, and averaged over tokens drawn from $\pi_\theta$ it
# *is* the KL divergence. For three possible tokens the average is a sum of three terms:

# %%
p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.3, 0.3, 0.4])  # π_θ and π_ref
k3 = q / p - (q / p).log() - 1
assert torch.isclose((p * k3).sum(), (p * (p / q).log()).sum()) and (k3 >= 0).all()
print(f"k3 of each token {k3.numpy().round(3)}, their average = KL = {(p * k3).sum():.4f} nats")

# %% [markdown]
# ## 4 · A policy to train: a table
#
# Four questions; an answer is two letters. The policy is a table of logits (question, position,
# letter) that starts at 0, so a right answer is luck: one in nine.

# %%
LETTERS = "abc"
RIGHT = torch.tensor([[LETTERS.index(x) for x in word] for word in ("aa", "bc", "ca", "cb")])


def draw(table_QTV, question_B, seed):
    """One answer for each entry of question_B: two letters."""
    p_BTV = table_QTV.detach()[question_B].softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(p_BTV.flatten(0, 1), 1, generator=generator).view(-1, 2)


def log_prob(table_QTV, question_B, letter_BT):
    return table_QTV[question_B].log_softmax(-1).gather(-1, letter_BT[..., None])[..., 0]


# %% [markdown]
# ## 5 · GRPO, all of it
#
# Sample, reward, compare, update twice; and again.


# %%
def grpo_by_hand(seed, steps=60, G=8, updates=2):
    table = torch.zeros(4, 2, 3, requires_grad=True)
    reference = table.detach().clone()
    optimizer = torch.optim.SGD([table], lr=4.0)
    question_B = torch.arange(4).repeat_interleave(G)  # every question G times
    rewards = []
    for step in range(steps):
        letter_BT = draw(table, question_B, 1000 * seed + step)
        old_BT = log_prob(table, question_B, letter_BT).detach()
        reward_QG = (letter_BT == RIGHT[question_B]).all(1).float().view(-1, G)
        advantage_B1 = advantages_by_hand(reward_QG).view(-1, 1)
        for _ in range(updates):
            logp_BT = log_prob(table, question_B, letter_BT)
            ref_BT = log_prob(reference, question_B, letter_BT)
            loss = loss_by_hand(logp_BT, old_BT, ref_BT, advantage_B1, weight=1 / logp_BT.numel())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        rewards.append(reward_QG)
    return torch.stack(rewards)  # [step, question, answer]


reward_SNQG = torch.stack([grpo_by_hand(seed) for seed in range(8)])  # 8 seeds, N steps
mean_SN = reward_SNQG.mean((2, 3))
print(f"mean reward of the first 5 steps {mean_SN[:, :5].mean():.2f}, of the last 5", end=" ")
print(f"{mean_SN[:, -5:].mean():.2f}; the worst seed's last 5 {mean_SN[:, -5:].mean(1).min():.2f}")
assert mean_SN[:, -5:].mean(1).min() > 0.8 > 0.3 > mean_SN[:, 0].mean()

# %%
draw_grpo(reward_SNQG, chance=1 / 9)

# %% [markdown]
# **What you should see.** The table learns all four answers, in every seed. On the right, where the
# lesson comes from: groups that are all wrong (early) or all right (late) teach nothing, and the work
# is done in between. As the policy becomes good, live groups become rare, and learning slows down by
# itself. Tutorial 06 meets the same picture in a real run.
#
# ## 6 · One step on a language model
#
# `grpo_step` needs a policy, prompts, and for every prompt a function that scores an answer. Any
# prompt will do. Here: states of the household world, and a reward of 1 for the expert's action.

# %%
policy = load_policy(ModelConfig(path="builtin:tiny", backend="torch", rank=8, alpha=16), SEED)
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False))
played = collect(make_env("household"), "train", 12, seed=SEED, source="household expert")
states = [(trajectory.state(2), trajectory.steps[2].action) for trajectory in played]
prompts = [prompter.action(state).tokens for state, _ in states]


def score(expert, sample):
    reward = action_reward(sample.text, expert)
    return Scored(reward, correct=reward == 1, valid=bool(sample.text))


scorers = [partial(score, expert) for _, expert in states]

# %% [markdown]
# Four steps to warm up, because a fresh adapter (B = 0) has no gradient at A. Then the step that will be
# computed again: three updates on one sampled batch, with the KL term.

# %%
for step in range(4):
    grpo_step(policy, prompts, scorers, GRPOConfig(group_size=8, max_tokens=10), 1e-3, seed=step)
policy.reset_optimizer()
policy.freeze_reference()
BEFORE = Path(tempfile.mkdtemp())
policy.save_adapter(BEFORE)

config = GRPOConfig(group_size=8, max_tokens=10, beta=0.05, updates=3)
metrics, rollouts = grpo_step(policy, prompts, scorers, config, 1e-3, seed=100)
for name in ("reward", "zero_variance", "ratio", "clip_fraction", "kl", "loss", "grad_norm"):
    print(f"{name:14}{metrics[name]:8.4f}")

# %% [markdown]
# By hand, with transformers and PEFT alone: the adapter as it was before, and one row for each answer
# with its prompt in front, padded on the right.

# %%
base = AutoModelForCausalLM.from_pretrained(find_model("builtin:tiny").path)
plain = PeftModel.from_pretrained(base, BEFORE, is_trainable=True)
rows = [(r.prompt, s, a) for r in rollouts for s, a in zip(r.samples, r.advantages)]
L = max(len(prompt) + len(sample.tokens) for prompt, sample, _ in rows)
token_BL = torch.zeros(len(rows), L, dtype=torch.long)
real_BL, answer_BL, old_BL, advantage_BL, weight_BL = torch.zeros(5, len(rows), L)
for b, (prompt, sample, advantage) in enumerate(rows):
    end = len(prompt) + len(sample.tokens)
    answer = slice(len(prompt), end)
    token_BL[b, :end] = torch.tensor(prompt + sample.tokens)
    real_BL[b, :end] = answer_BL[b, answer] = 1
    old_BL[b, answer] = torch.tensor(sample.logps)
    advantage_BL[b, answer] = float(advantage)
    weight_BL[b, answer] = 1 / (len(rows) * len(sample.tokens))  # "grpo"


# %% [markdown]
# Then the loss of section 3, three times.


# %%
def plain_logp():
    """log π of every token given those before it; 0 where there is no answer."""
    logits_BLV = plain(input_ids=token_BL, attention_mask=real_BL).logits
    logp_BL = logits_BLV[:, :-1].log_softmax(-1).gather(-1, token_BL[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logp_BL, (1, 0)) * answer_BL


trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}
optimizer = torch.optim.AdamW(trained.values(), lr=1e-3, weight_decay=0.0)
ref_BL = plain_logp().detach()
losses, norms = [], []
for _ in range(config.updates):
    loss = loss_by_hand(plain_logp(), old_BL, ref_BL, advantage_BL, weight_BL, beta=config.beta)
    optimizer.zero_grad()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)
    optimizer.step()
    losses.append(loss.item())
    norms.append(norm.item())
print("loss at each update         ", *(f"{x:+.5f}" for x in losses))
print("norm of its gradient        ", *(f"{x:.5f}" for x in norms))

# %% [markdown]
# Equal? AdamW divides every gradient by its own size, so where one is nearly 0, rounding decides its
# direction. Hence one tolerance for all weights together: the distance between the two results, as a
# share of the distance that the step went.


# %%
def joined(tensors):
    return torch.cat([tensors[name].detach().flatten() for name in sorted(trained)])


went = (joined(policy.trainable) - joined(policy.reference)).norm()
apart = (joined(policy.trainable) - joined(trained)).norm()
print(f"the step went {went:.4f}; the results are {apart:.1e} apart, {apart / went:.0e} of it")
assert apart < 1e-3 * went
assert np.allclose([losses[-1], norms[-1]], [metrics["loss"], metrics["grad_norm"]], atol=1e-4)

# %% [markdown]
# The first of the three losses is 0, and its gradient is not. Right after sampling every ratio is 1, so the
# loss is $-\sum wA$, and advantages sum to 0 within each group; but the slope is
# $-wA\,\partial\log\pi$, which does not cancel. So the *value* of this loss tells nothing about learning:
# look at the reward.
#
# ## 7 · What the plain rows cost
#
# By hand every answer carried its prompt along: G·(P + C) tokens pass the model for one group. The
# package computes a prompt once, in one row in which the answers see the prompt and not each other: P + G·C.

# %%
groups = [make_group(r.prompt, r.samples, r.advantages) for r in rollouts]
in_rows, shared = int(real_BL.sum()), sum(group.size for group in groups)
print(
    f"this step: {in_rows} tokens by hand, {shared} in shared rows: {in_rows / shared:.1f} × as many"
)
assert abs(losses[0]) < 1e-5 < norms[0] and in_rows > shared

# %% [markdown]
# ## Exercise
#
# A prompt is answered rightly with probability p. How likely is a group of G answers to be live? Which
# p is best? And how many answers does a prompt with p = 1 % need to be live half of the time? Work
# it out, then compare with groups that you draw from a table of zeros, where p = 1/9:
#
#     letter_BT = draw(torch.zeros(4, 2, 3), torch.zeros(8 * 4000, dtype=torch.long), seed=0)

# %% [markdown]
# ## Solution
#
# A group is dead if all are wrong, $(1-p)^G$, or all are right, $p^G$. Live groups are likeliest at p = ½:
# prompts that are neither too easy nor too hard.


# %%
def live_share(p, G):
    return 1 - p**G - (1 - p) ** G


p = np.linspace(0, 1, 101)
assert p[np.argmax(live_share(p, 8))] == 0.5
needed = next(G for G in range(2, 1000) if live_share(0.01, G) >= 0.5)
assert needed == np.ceil(np.log(0.5) / np.log(0.99))  # p^G is nothing here
print(f"p = 1 %: G = {needed}")

# %%
letter_BT = draw(torch.zeros(4, 2, 3), torch.zeros(8 * 4000, dtype=torch.long), seed=0)
right_RG = (letter_BT == RIGHT[0]).all(1).view(-1, 8)  # 4,000 groups of 8 answers to question 0
counted = (right_RG.any(1) & ~right_RG.all(1)).float().mean().item()
expected = live_share(1 / 9, 8)
assert abs(counted - expected) < 4 * np.sqrt(expected * (1 - expected) / 4000)
print(f"p = 1/9, G = 8: live {expected:.1%} by the formula, {counted:.1%} counted")
