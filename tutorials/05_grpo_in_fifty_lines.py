# %% [markdown]
# # 05 · GRPO in fifty lines, then ours
#
# **The question.** A policy answers, and all that anyone can say of an answer is a number. How does
# that number become a gradient? And what, of all that a library adds, changes the result?
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
# $\varepsilon$ keeps the division finite, $\epsilon$ is the clip range, and $w_{it}$ says what a
# token counts (section 5). β weighs the KL term, which holds the policy near $\pi_{ref}$, the one
# that the stage began with.
#
# This page writes the whole loop by hand for a policy that is a table, and lets the package's step
# train the same table. Then it does one step on the tiny language model both ways: the package lays
# a prompt and its answers in one row; by hand the prompt is repeated for every answer.

# %%
import tempfile
from functools import partial
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from miniact.backends.layout import layouts, loss_tokens
from miniact.backends.models import find_model
from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import GRPOConfig, ModelConfig, PairsConfig, PromptConfig
from miniact.data.trajectories import collect
from miniact.envs import make_env
from miniact.method.grpo import advantages, grpo_step, is_live, make_group, token_weights, weigh
from miniact.method.losses import GRPOLoss
from miniact.method.pairs import draw_orders, gather, pairs_at, propose, questions
from miniact.method.prompts import Prompter
from miniact.method.rewards import choice_reward
from miniact.tools.cost import forward_flops, known_shape, training_flops
from miniact.types import Sample, Scored, Tokens

WORK = Path(tempfile.mkdtemp())
SEED = 5

# %% [markdown]
# ## 1 · The smallest policy that can answer
#
# Four questions; an answer is a string of `a` and `b` that ends with `.` or is cut off. The policy is
# a table of logits: which token, at which position of the answer, for which question. It starts at 0:
# every token is equally likely, and a right answer is luck.

# %%
ALPHABET, END, LONGEST = "ab.", 2, 4
RIGHT = ["a.", "b.", "ab.", "ba."]  # the right answers to questions 0, 1, 2, 3
TABLE_LR = 4.0


def new_table():
    return torch.zeros(len(RIGHT), LONGEST, len(ALPHABET), requires_grad=True)


def draw(table_QTV, question_B, seed):
    """One answer a row: its tokens, and a mask that is 1 up to its end and 0 behind it."""
    p_BTV = table_QTV.detach()[question_B].softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    token_BT = torch.multinomial(p_BTV.flatten(0, 1), 1, generator=generator).view(-1, LONGEST)
    ends_BT = (token_BT == END).float()
    return token_BT, (ends_BT.cumsum(1) - ends_BT == 0).float()


def log_prob(table_QTV, question_B, token_BT):
    return table_QTV[question_B].log_softmax(-1).gather(-1, token_BT[..., None])[..., 0]


def reward_of(question, tokens):
    return float("".join(ALPHABET[t] for t in tokens) == RIGHT[question])


chance = [3.0 ** -len(answer) for answer in RIGHT]
print("chance of each right answer at the start:", [f"{p:.1%}" for p in chance])

# %% [markdown]
# ## 2 · GRPO, all of it
#
# Nothing is left out: groups, advantages, the clipped ratio, the KL term, several updates on one
# sampled batch. There is no value network: a group is its own baseline.


# %%
def grpo_by_hand(seed, steps, G=8, clip=0.2, beta=0.01, updates=2):
    table = new_table()
    reference = table.detach().clone()
    optimizer = torch.optim.SGD([table], TABLE_LR)
    question_B = torch.arange(len(RIGHT)).repeat_interleave(G)  # every question G times
    log = []
    for step in range(steps):
        # sample G answers to each question from the policy as it is now
        token_BT, mask_BT = draw(table, question_B, 1000 * seed + step)
        old_BT = log_prob(table, question_B, token_BT).detach()

        # reward each whole answer
        lengths = mask_BT.sum(1).long().tolist()
        reward_B = torch.tensor([
            reward_of(q, tokens[:n])
            for q, tokens, n in zip(question_B.tolist(), token_BT.tolist(), lengths)
        ])  # fmt: skip

        # compare each answer with its own group
        reward_QG = reward_B.view(-1, G)
        centred_QG = reward_QG - reward_QG.mean(1, keepdim=True)
        advantage_QG = centred_QG / (reward_QG.std(1, keepdim=True) + 1e-4)
        advantage_B1 = advantage_QG.view(-1, 1)

        # the "grpo" normaliser: mean over an answer's tokens, then over answers
        weight_BT = mask_BT / mask_BT.sum(1, keepdim=True) / len(question_B)

        for _ in range(updates):
            logp_BT = log_prob(table, question_B, token_BT)
            ratio_BT = (logp_BT - old_BT).exp()
            clipped_BT = ratio_BT.clip(1 - clip, 1 + clip)
            gain_BT = torch.minimum(ratio_BT * advantage_B1, clipped_BT * advantage_B1)
            delta_BT = log_prob(reference, question_B, token_BT) - logp_BT
            k3_BT = delta_BT.exp() - delta_BT - 1
            loss = (weight_BT * (beta * k3_BT - gain_BT)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        share_Q = reward_QG.mean(1)
        log.append([float((share_Q == s).float().mean()) for s in (0, 1)] + [float(share_Q.mean())])
    return table.detach(), np.array(log)


STEPS = 120
curves = {seed: grpo_by_hand(seed, STEPS)[1] for seed in range(8)}
first = np.mean([log[:5, 2].mean() for log in curves.values()])
last = np.mean([log[-5:, 2].mean() for log in curves.values()])
assert last > first + 0.5
print(f"mean reward over {len(curves)} seeds: first 5 steps {first:.2f}, last 5 {last:.2f}")

# %% [markdown]
# Why that odd KL term? Averaged over answers drawn from $\pi_\theta$ it *is* the KL divergence, and,
# unlike log π_θ − log π_ref, it is negative for no token. For one row of a table the average
# is a sum over three tokens:

# %%
trained_table, _ = grpo_by_hand(SEED, steps=10)
logp_V, ref_V = trained_table[0, 0].log_softmax(-1), new_table().detach()[0, 0].log_softmax(-1)
k3_V = (ref_V - logp_V).exp() - (ref_V - logp_V) - 1
divergence = (logp_V.exp() * (logp_V - ref_V)).sum()
assert torch.isclose((logp_V.exp() * k3_V).sum(), divergence) and (k3_V > -1e-6).all()
assert (logp_V - ref_V).min() < 0
print("k3 of each token:", k3_V.numpy().round(3), f"  average = KL = {divergence:.4f} nats")

# %% [markdown]
# ## 3 · The package trains the same table
#
# `grpo_step` does not know what a model is. It asks a policy for five things, and a table can give them:
# answers, log-probabilities, a gradient, a step, and to keep its weights of now as π_ref.


# %%
class TablePolicy:
    def __init__(self):
        self.table = new_table()

    def sample(self, prompts, n, max_tokens, temperature, seed):
        question_B = torch.tensor([q for (q,) in prompts]).repeat_interleave(n)
        token_BT, mask_BT = draw(self.table, question_B, seed)
        logp_BT = log_prob(self.table, question_B, token_BT).detach()
        answers = []
        for tokens, logps, mask in zip(token_BT.tolist(), logp_BT.tolist(), mask_BT):
            length = int(mask.sum())
            stop = "end" if tokens[length - 1] == END else "length"
            answers.append(Sample(tuple(tokens[:length]), tuple(logps[:length]), "", stop))
        return [answers[at : at + n] for at in range(0, len(answers), n)]

    def score(self, table, group, completion):
        logp_TV = table[group.prompt[0]].log_softmax(-1)
        return logp_TV[range(len(completion.tokens)), list(completion.tokens)]

    def logprobs(self, groups, temperature=1.0, reference=False):
        table = (self.reference if reference else self.table).detach()
        return [[self.score(table, g, c).numpy() for c in g.completions] for g in groups]

    def forward_backward(self, groups, loss, temperature=1.0):
        (layout,) = layouts(groups, max_tokens=10**6)
        logps = [
            self.score(self.table, groups[g], groups[g].completions[c]) for g, c in layout.order
        ]
        tokens = Tokens(*map(torch.from_numpy, vars(loss_tokens(groups, layout)).values()))
        value, metrics = loss(torch, torch.cat(logps), tokens)
        value.backward()
        return {name: float(metric.detach()) for name, metric in metrics.items()}

    def optim_step(self, lr, max_grad_norm):
        norm = float(self.table.grad.norm())  # small here: nothing needs clipping
        self.table.data -= lr * self.table.grad
        self.table.grad = None
        return norm

    def freeze_reference(self):
        self.reference = self.table.detach().clone()


def score(question, sample):
    reward = reward_of(question, sample.tokens)
    return Scored(reward, correct=reward == 1.0, valid=sample.stop == "end")


toy = TablePolicy()
toy.freeze_reference()
config = GRPOConfig(group_size=8, max_tokens=LONGEST, beta=0.01, updates=2)
asked = [(q,) for q in range(len(RIGHT))]
scorers = [partial(score, q) for q in range(len(RIGHT))]  # one for each prompt
for step in range(30):
    _, rollouts = grpo_step(toy, asked, scorers, config, TABLE_LR, 1000 * SEED + step)

by_hand, _ = grpo_by_hand(SEED, steps=30)
largest = float((toy.table.detach() - by_hand).abs().max())
assert largest < 1e-3
print(
    f"after 30 steps the logits differ by {largest:.1e} at most, the largest is {by_hand.max():.2f}"
)

# %% [markdown]
# ## 4 · Groups that teach nothing
#
# If all answers of a group earn the same, every advantage is 0: today the prompt was too hard or too
# easy. Without a KL term such a group can be left out before the backward pass, which then costs
# nothing, as long as the normaliser still counts it:

# %%
toy = TablePolicy()
groups = []
for q, answers in enumerate(toy.sample(asked, 8, LONGEST, 1.0, SEED)):
    rewards = np.array([reward_of(q, answer.tokens) for answer in answers])
    groups.append(make_group((q,), answers, advantages(rewards)))
    print(f"question {q}: {rewards.sum():.0f} of {len(rewards)} right, live: {is_live(groups[-1])}")
weighed = weigh(groups, "grpo", LONGEST)
live = [group for group in weighed if is_live(group)]
assert 0 < len(live) < len(weighed)


def gradient(of):
    toy.forward_backward(of, GRPOLoss())
    found, toy.table.grad = toy.table.grad, None
    return found


assert torch.allclose(gradient(weighed), gradient(live), atol=1e-8)
print(f"{len(weighed)} groups, {len(live)} of them live: the same gradient from either")

# %% [markdown]
# ## 5 · Three normalisers
#
# A loss is a sum over tokens; $w_{it}$ says what a token counts. Take four answers of unequal length:

# %%
lengths = np.array([2, 4, 4, 8])
B, most = len(lengths), 10  # `most`: the longest answer that the config allows
weight_by_hand = {
    "grpo": 1 / (B * lengths),  # mean over an answer's tokens, then over answers
    "dapo": np.full(B, 1 / lengths.sum()),  # mean over all tokens
    "dr_grpo": np.full(B, 1 / (B * most)),  # a constant
}
print("length of the answer:   ", *(f"{n:7d}" for n in lengths))
for variant, weight_B in weight_by_hand.items():
    assert np.allclose(token_weights(lengths, variant, most), weight_B)
    print(f"{variant:8} weight a token ", *(f"{w:7.4f}" for w in weight_B))
    print(f"{'':8} weight an answer", *(f"{w:7.4f}" for w in weight_B * lengths))

short, long = 0, -1
of_answer = {variant: weight_B * lengths for variant, weight_B in weight_by_hand.items()}
assert np.isclose(of_answer["grpo"][short], of_answer["grpo"][long])
for variant in ("dapo", "dr_grpo"):
    times = of_answer[variant][long] / of_answer[variant][short]
    assert np.isclose(times, lengths[long] / lengths[short])
assert np.allclose(weight_by_hand["dr_grpo"] / weight_by_hand["dapo"], lengths.sum() / (B * most))

# %% [markdown]
# Under `grpo` every answer has the same say, so a token of a long answer counts less: a wrong answer
# is punished less per token the longer it is, and a right one is rewarded less. Under `dapo` and
# `dr_grpo` every token counts the same, so a long answer has more say. Within one batch these two
# differ by a factor only; but `dapo`'s changes from batch to batch, and `dr_grpo`'s never does.
#
# ## 6 · One step on a language model, both ways
#
# The built-in model of about 0.3 million parameters, critic prompts from the household world, as in
# tutorial 01. A few steps first, since a fresh adapter (B = 0) has no gradient at A.

# %%
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=8, alpha=16), seed=SEED)
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False))
played = collect(make_env("household"), "train", 12, seed=SEED, source="household expert")
states = [(t.state(2), t.steps[2].action) for t in played]
how = PairsConfig(k=2, max_tokens=10)
pairs, _ = gather(pairs_at(states, propose(policy, prompter, states, how, SEED), how))
shown = draw_orders(questions(pairs), (SEED,))
prompts = [prompter.critic(s.state, s.actions).tokens for s in shown]


def judge(question, sample):
    choice = prompter.parse_choice(sample.text, question.actions)
    reward = choice_reward(choice, question.right)
    return Scored(reward, choice == question.right, choice is not None)


judges = [partial(judge, question) for question in shown]
warm = GRPOConfig(group_size=8, max_tokens=10)
for step in range(4):
    grpo_step(policy, prompts, judges, warm, lr=1e-3, seed=step)
policy.reset_optimizer()
policy.freeze_reference()
policy.save_adapter(WORK / "adapter")
print(
    f"{len(prompts)} questions to the critic, prompts of {np.mean([*map(len, prompts)]):.0f} tokens"
)

# %% [markdown]
# The package takes one step: three updates on one sampled batch, with the KL term.

# %%
config = GRPOConfig(group_size=8, max_tokens=10, beta=0.05, updates=3)
LR = 1e-3
metrics, rollouts = grpo_step(policy, prompts, judges, config, LR, seed=100)
for name in ("reward", "zero_variance", "ratio", "clip_fraction", "kl", "grad_norm"):
    print(f"{name:14}{metrics[name]:.4f}")

# %% [markdown]
# By hand, with transformers and PEFT alone: the model as it was before, one row for each answer, its
# prompt in front of it, padded on the right, and autograd through all of it.

# %%
base = AutoModelForCausalLM.from_pretrained(find_model("builtin:tiny").path)
plain = PeftModel.from_pretrained(base, WORK / "adapter", is_trainable=True)
trained = {name: p for name, p in plain.named_parameters() if p.requires_grad}

rows = [(r.prompt, s, a) for r in rollouts for s, a in zip(r.samples, r.advantages)]
L = max(len(prompt) + len(sample.tokens) for prompt, sample, _ in rows)
token_BL = torch.zeros(len(rows), L, dtype=torch.long)
real_BL, answer_BL, old_BL, advantage_BL, weight_BL = (torch.zeros(len(rows), L) for _ in range(5))
for b, (prompt, sample, advantage) in enumerate(rows):
    P, C = len(prompt), len(sample.tokens)
    token_BL[b, : P + C] = torch.tensor(prompt + sample.tokens)
    real_BL[b, : P + C] = answer_BL[b, P : P + C] = 1
    old_BL[b, P : P + C] = torch.tensor(sample.logps)
    advantage_BL[b, P : P + C] = advantage
    weight_BL[b, P : P + C] = 1 / (len(rows) * C)


def plain_logp():
    """log π of every token but the first, given those before it; 0 in front, to keep the shape."""
    z_BLV = plain(input_ids=token_BL, attention_mask=real_BL).logits
    logp_BL = z_BLV[:, :-1].log_softmax(-1).gather(-1, token_BL[:, 1:, None])[..., 0]
    return torch.nn.functional.pad(logp_BL, (1, 0)) * answer_BL


with torch.no_grad():
    ref_BL = plain_logp()
optimizer = torch.optim.AdamW(trained.values(), LR, weight_decay=0.0)
losses, norms, gradients = [], [], []
for _ in range(config.updates):
    logp_BL = plain_logp()
    ratio_BL = (logp_BL - old_BL).exp()
    clipped_BL = ratio_BL.clip(1 - config.clip_low, 1 + config.clip_high)
    gain_BL = torch.minimum(ratio_BL * advantage_BL, clipped_BL * advantage_BL)
    delta_BL = ref_BL - logp_BL
    loss = (weight_BL * (config.beta * (delta_BL.exp() - delta_BL - 1) - gain_BL)).sum()
    loss.backward()
    gradients.append({name: p.grad.clone() for name, p in trained.items()})
    norms.append(float(torch.nn.utils.clip_grad_norm_(trained.values(), config.max_grad_norm)))
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
print("losses ", *(f"{x:+.5f}" for x in losses))
print("norms  ", *(f"{x:.5f}" for x in norms))

# %% [markdown]
# Equal? AdamW divides every gradient by its own size, so where one is nearly 0, rounding decides its
# direction. Hence a tolerance for all weights together: the distance between the two results, as a
# share of the distance that the step went.


# %%
def joined(tensors):
    return torch.cat([tensors[name].detach().flatten() for name in sorted(trained)])


went = (joined(policy.trainable) - joined(policy.reference)).norm()
apart = (joined(policy.trainable) - joined(trained)).norm()
assert apart < 1e-3 * went
assert np.isclose(metrics["loss"], losses[-1], atol=1e-5)
assert np.isclose(metrics["grad_norm"], norms[-1], rtol=1e-3)
print(f"the step went {went:.4f}; the two results are {apart:.1e} apart: {apart / went:.1e} of it")

# %% [markdown]
# ## 7 · A loss of 0 whose gradient is not 0
#
# The first of the three losses above was 0. Right after sampling every ratio is 1, so the loss is
# $-\sum w A$, and advantages sum to 0 within each group. But its slope is $-w A\,\partial\log\pi$, which
# does not cancel. So the *value* of this loss tells nothing about learning; look at the reward. The
# package's gradient there is that of the plain rows:

# %%
policy.load_adapter(WORK / "adapter")
groups = [make_group(r.prompt, r.samples, r.advantages) for r in rollouts]
groups = weigh(groups, config.variant, config.max_tokens)
first = policy.forward_backward(groups, GRPOLoss())
ours, by_hand = joined({n: p.grad for n, p in policy.trainable.items()}), joined(gradients[0])
error = (ours - by_hand).norm() / by_hand.norm()
assert abs(first["loss"]) < 1e-5 and abs(losses[0]) < 1e-5 < norms[0]
assert error < 1e-4
print(f"loss {first['loss']:+.1e}, norm of its gradient {ours.norm():.4f}, by hand {norms[0]:.4f}")
print(f"relative difference of the gradients: {error:.1e}")

# %% [markdown]
# ## 8 · What the plain rows cost
#
# By hand every answer carried its prompt along: G·(P + C) tokens pass the model for one group. In one
# row, in which the answers see the prompt and not each other, it is P + G·C. Count both:


# %%
def token_passes(groups, shared):
    return sum(int((x.group_BL >= 0).sum()) for x in layouts(groups, 10**6, shared))


sizes = [(len(g.prompt), [len(c.tokens) for c in g.completions]) for g in groups]
one_row = token_passes(groups, shared=True)
plain_rows = token_passes(groups, shared=False)
assert one_row == sum(P + sum(lengths) for P, lengths in sizes)
assert plain_rows == sum(len(lengths) * P + sum(lengths) for P, lengths in sizes)
assert plain_rows == int(real_BL.sum())
print(f"this step: {plain_rows} tokens in plain rows, {one_row} in shared ones", end="")
print(f": {plain_rows / one_row:.1f} times as many")

# %% [markdown]
# `miniact.tools.cost` turns sizes into operations, so that a step can be priced before it is run. For a big
# model the linear layers dominate, and the ratio of operations is nearly that of the tokens:

# %%
shape = known_shape("Qwen/Qwen3-8B")
P, C = 2048, 512
print("Qwen3-8B, P = 2048, C = 512; plain rows / one row:")
for G in (2, 4, 8, 16):
    tokens = G * (P + C) / (P + G * C)
    forward = G * forward_flops(shape, P, 1, C) / forward_flops(shape, P, G, C)
    training = G * training_flops(shape, P, 1, C, 16) / training_flops(shape, P, G, C, 16)
    print(f"  G = {G:2}  tokens {tokens:.2f}  sampling {forward:.2f}  training {training:.2f}")
    assert 1 < forward < G and abs(forward / tokens - 1) < 0.1

# %% [markdown]
# ## 9 · The picture

# %%
stacked = np.array(list(curves.values()))  # seed, step, (all wrong, all right, reward)
steps = np.arange(STEPS)
figure, axes = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
reward = stacked[:, :, 2]
axes[0].fill_between(steps, reward.min(0), reward.max(0), alpha=0.2, label="lowest to highest seed")
axes[0].plot(steps, reward.mean(0), label=f"mean of {len(reward)} seeds")
axes[0].axhline(np.mean(chance), color="grey", linestyle=":", label="chance")
axes[0].set(title="the table learns", xlabel="step", ylabel="mean reward", ylim=(0, 1.02))
wrong, right = stacked[:, :, 0].mean(0), stacked[:, :, 1].mean(0)
parts = {"all wrong": wrong, "live": 1 - wrong - right, "all right": right}
colours = ["C3", "C0", "C2"]
axes[1].stackplot(steps, list(parts.values()), labels=list(parts), colors=colours, alpha=0.6)
axes[1].set(title="only live groups teach", xlabel="step", ylim=(0, 1))
axes[1].set(ylabel=f"share of {len(RIGHT)} groups × {len(reward)} seeds")
G = np.arange(1, 17)
axes[2].set_xticks([1, 4, 8, 12, 16])
P, C = (float(np.mean(x)) for x in ([P for P, _ in sizes], [n for _, ns in sizes for n in ns]))
axes[2].plot(G, G * (P + C), color="C3", label="plain rows: G·(P + C)")
axes[2].plot(G, P + G * C, color="C0", label="one row: P + G·C")
axes[2].set(title=f"critic prompts, P = {P:.0f}, C = {C:.1f}", xlabel="answers to a prompt, G")
axes[2].set(ylabel="tokens through the model", ylim=(0, None))
for axis, place in zip(axes, ("lower right", "upper right", "upper left")):
    axis.legend(fontsize=8, loc=place)
assert reward[:, -5:].mean(1).min() > 0.8
assert wrong[0] > wrong[-1] and right[-1] > right[0]

# %% [markdown]
# **What you should see.** The table learns all four answers, in every seed. Groups that are all wrong
# at the start and all right at the end teach nothing: the work is done in between. On the language
# model the package's step and the plain one agree to rounding, and one more answer to a prompt costs C
# tokens instead of P + C.
#
# ## Exercise
#
# A prompt is answered rightly with probability p. How likely is a group of G answers to be live? Which
# p is best? And how many answers does a prompt with p = 1 % need to be live half of the time? Work
# it out, then compare with the first step of the table.

# %% [markdown]
# ## Solution
#
# A group is dead if all are wrong, (1 − p)^G, or all are right, p^G.


# %%
def live_share(p, G):
    return 1 - p**G - (1 - p) ** G


p = np.linspace(0, 1, 101)
assert p[np.argmax(live_share(p, 8))] == 0.5
needed = next(G for G in range(2, 1000) if live_share(0.01, G) >= 0.5)
assert needed == np.ceil(np.log(0.5) / np.log(0.99))  # p^G is nothing here
print(f"p = 1 %: G = {needed}")

G, repeats = 8, 4000
drawn, mask = draw(new_table(), torch.zeros(G * repeats, dtype=torch.long), seed=SEED)
is_right = (drawn[:, 0] == 0) & (drawn[:, 1] == END)  # "a."
share = is_right.view(repeats, G).float().mean(1)
counted = float(((share > 0) & (share < 1)).float().mean())
expected = live_share(chance[0], G)
assert abs(counted - expected) < 4 * np.sqrt(expected * (1 - expected) / repeats)
print(f"p = {chance[0]:.1%}, G = {G}: live {expected:.1%} by the formula, {counted:.1%} counted")
