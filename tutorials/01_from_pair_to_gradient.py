# %% [markdown]
# # 01 · From a pair to a gradient
#
# **The question.** Imitation shows a model what an expert did. How can a model be taught to *tell* a
# better action from a worse one, when nobody can write down the right reasoning?
#
# **The answer in one line.** Show the state and two actions in random order, let the model
# answer freely several times, reward the answers that pick the expert's action, and push up the
# log-probability of whatever was rewarded more than its group:
#
# $$A_i=\frac{r_i-\bar r}{\operatorname{std}(r)+\varepsilon},\qquad
#   L=-\sum_i\sum_t w_{it}\,\min\big(\rho_{it}A_i,\ \operatorname{clip}(\rho_{it},1-\epsilon,1+\epsilon)A_i\big)$$
#
# Here $r_i$ is the reward of answer $i$ and $\bar r$ the mean of its group; $\varepsilon$ only keeps the
# division finite. $\rho_{it}$ says how many times likelier token $t$ has become since it was sampled,
# $\epsilon$ how far that may go before it no longer counts, and $w_{it}$ what a token weighs.
#
# This page walks through one such step with real numbers: one household state, one pair, one critic
# prompt, eight answers, their rewards, their advantages, the loss and its gradient. Every quantity is
# first computed by hand, then by the package, and the two are asserted equal.

# %%
import matplotlib.pyplot as plt
import numpy as np

from miniact.backends.torch.policy import TorchPolicy
from miniact.config.sections import GRPOConfig, ModelConfig, PromptConfig
from miniact.data.trajectories import collect
from miniact.envs import make_env
from miniact.method.grpo import advantages, make_group, token_weights, weigh
from miniact.method.losses import GRPOLoss
from miniact.method.pairs import filter_alternatives, positions
from miniact.method.prompts import Prompter
from miniact.method.rewards import canonical, choice_reward
from miniact.types import Question, Tokens

SEED = 4

# %% [markdown]
# ## 1 · A state and what the expert did there
#
# The built-in household world speaks the language of ALFWorld. Its expert plays one training task; we
# stop at its third step. The state is all that the agent knows then.

# %%
(trajectory,) = collect(make_env("household"), "train", 1, seed=SEED, source="household expert")
state, expert_action = trajectory.state(2), trajectory.steps[2].action
print("task:", state.task)
for observation, action in state.history:
    print(observation, "\n >", action)
print(state.observation)
print("\nthe expert's next action a⁺ =", repr(expert_action))

# %% [markdown]
# ## 2 · A pair: what would the model itself have done?
#
# The initial policy is the built-in tiny model: a Llama of about 0.3 million parameters that has read
# random play and nothing else. Sample K actions from it and keep those that differ from the expert's.
#
# From scratch, the filter is a set and two conditions:

# %%
policy = TorchPolicy(ModelConfig(path="builtin:tiny", rank=8, alpha=16), seed=SEED)
prompter = Prompter(policy.tokenizer, PromptConfig(form="plain", show_admissible=False))
prompt = prompter.action(state)
(samples,) = policy.sample([prompt.tokens], n=6, max_tokens=10, temperature=1.0, seed=SEED)
sampled = [sample.text for sample in samples]
print("sampled:", sampled)

kept_by_hand, seen = [], {canonical(expert_action)}
for action in sampled:
    if canonical(action) and canonical(action) not in seen:
        seen.add(canonical(action))
        kept_by_hand.append(action.strip())

kept, counts = filter_alternatives(expert_action, sampled, admissible=None)
assert kept == kept_by_hand
print("kept:   ", kept, dict(counts))

pair = Question(state, expert_action, (kept[0],))
print(f"\nthe pair: a⁺ = {pair.expert!r}   a⁻ = {pair.alternative!r}")

# %% [markdown]
# ## 3 · The critic prompt, in an order drawn for this presentation
#
# The pair itself has no order. If the expert's action always stood first, "1" would always be right and
# nothing would have to be judged; so the position is drawn anew each time, equally often first and
# second within a batch.

# %%
right = int(positions(1, (SEED, 0))[0])
shown = pair.present(right).actions
assert shown[right] == pair.expert
swapped = pair.present(1 - right).actions
assert swapped == shown[::-1]

critic = prompter.critic(state, shown)
print(policy.tokenizer.decode(critic.tokens))
print(f"\nright answer: number {right + 1}")

# %% [markdown]
# ## 4 · A group of answers and their rewards
#
# Sample G = 8 answers to this one prompt. An answer is worth 1 if it picks the expert's action, by
# number or by its text, and 0 otherwise: unreadable answers included. Nothing else is scored.

# %%
G = 8
(answers,) = policy.sample([critic.tokens], n=G, max_tokens=10, temperature=1.0, seed=SEED + 1)
rewards = []
for answer in answers:
    choice = prompter.parse_choice(answer.text, shown)
    rewards.append(choice_reward(choice, right))
    print(f"reward {rewards[-1]:.0f}   {answer.text!r}")
reward_G = np.array(rewards)

# %% [markdown]
# ## 5 · Advantages: better or worse than its own group
#
# $A_i=(r_i-\bar r)/(\operatorname{std}(r)+\varepsilon)$. No value network: the group is its own baseline.
# If all rewards are equal there is nothing to learn from this prompt, and the advantages are exactly 0.

# %%
by_hand_G = (reward_G - reward_G.mean()) / (reward_G.std(ddof=1) + 1e-4)
advantage_G = advantages(reward_G)
assert np.allclose(advantage_G, by_hand_G if np.ptp(reward_G) else 0.0)
assert abs(advantage_G.sum()) < 1e-9
assert (advantages(np.ones(G)) == 0).all()
print("rewards   ", reward_G)
print("advantages", advantage_G.round(3))
assert np.ptp(reward_G) > 0, "this seed gives a group with something to learn; others may not"

# %% [markdown]
# ## 6 · The loss, token by token
#
# Right after sampling, the policy that is trained is the one that sampled: every ratio is
# $\rho=\exp(\log\pi_\theta-\log\pi_{old})=1$, and the loss *value* is $-\sum w A = 0$. That is no fault: a
# loss of 0 with a gradient that is not 0. So let us first pretend that the policy has moved, by adding
# 0.3 to some log-probabilities and taking 0.3 from the others, and compute the clipped loss from scratch.

# %%
config = GRPOConfig(group_size=G, max_tokens=10)
old_logp = [np.array(answer.logps) for answer in answers]
moved_logp = [logp + 0.3 * np.sign(np.sin(np.arange(len(logp)) + 1)) for logp in old_logp]

loss_by_hand = 0.0
for A, old, new in zip(advantage_G, old_logp, moved_logp):
    ratio = np.exp(new - old)
    clipped = np.clip(ratio, 1 - config.clip_low, 1 + config.clip_high)
    per_token = -np.minimum(ratio * A, clipped * A)
    loss_by_hand += per_token.mean() / G  # the "grpo" normaliser: mean over tokens, then answers

group = make_group(critic.tokens, answers, advantage_G)
(weighed,) = weigh([group], config.variant, config.max_tokens)
lengths = [len(answer.tokens) for answer in answers]
assert np.allclose(
    [c.weight for c in weighed.completions], token_weights(lengths, "grpo", config.max_tokens)
)


def spread(values):
    """One value per answer → one per token."""
    return np.repeat(np.asarray(values, dtype=float), lengths)


tokens = Tokens(
    weight_N=spread([c.weight for c in weighed.completions]),
    advantage_N=spread(advantage_G),
    old_logp_N=np.concatenate(old_logp),
    ref_logp_N=np.zeros(sum(lengths)),
)
loss = GRPOLoss(config.clip_low, config.clip_high)
value, metrics = loss(np, np.concatenate(moved_logp), tokens)
assert np.isclose(value, loss_by_hand)
print(f"loss {value:+.4f} by the package, {loss_by_hand:+.4f} by hand")
print(f"clipped share of the tokens: {metrics['clip_fraction']:.2f}")

# %% [markdown]
# ## 7 · The gradient
#
# $\partial L/\partial\log\pi_\theta = -w\,A\,\rho$ where the ratio is not clipped, 0 where it is: above
# $1+\epsilon$ if $A>0$, below $1-\epsilon$ if $A<0$. Check it against finite differences.

# %%
ratio_N = np.exp(np.concatenate(moved_logp) - tokens.old_logp_N)
A_N = tokens.advantage_N
is_clipped_N = np.where(A_N > 0, ratio_N > 1 + config.clip_high, ratio_N < 1 - config.clip_low)
formula_N = -tokens.weight_N * A_N * ratio_N * ~is_clipped_N

numeric_N = np.zeros_like(formula_N)
for n in range(len(numeric_N)):
    up, down = (np.concatenate(moved_logp) for _ in range(2))
    up[n] += 1e-5
    down[n] -= 1e-5
    numeric_N[n] = (loss(np, up, tokens)[0] - loss(np, down, tokens)[0]) / 2e-5
assert np.allclose(numeric_N, formula_N, atol=1e-7)
print(f"largest difference: {np.abs(numeric_N - formula_N).max():.1e}")

# %% [markdown]
# ## 8 · One real step
#
# Now through the model. The package lays the prompt and all G answers out in one row, so the prompt is
# computed once; the gradient is that of the plain layout (the tests hold it to 1e-5). On the first
# update every ratio is 1 and the loss is 0, and still the step makes rewarded answers more likely.

# %%
before = [logp.sum() for logp in policy.logprobs([weighed])[0]]
step = policy.forward_backward([weighed], loss)
norm = policy.optim_step(lr=2e-3, max_grad_norm=1.0)
after = [logp.sum() for logp in policy.logprobs([weighed])[0]]
assert abs(step["loss"]) < 1e-4 and norm > 0
print(f"loss {step['loss']:+.6f} (0 is expected), gradient norm {norm:.3f}\n")
print("reward   log π before → after")
for r, b, a in zip(reward_G, before, after):
    print(f"  {r:.0f}      {b:7.3f} → {a:7.3f}  ({a - b:+.3f})")
change = np.array(after) - np.array(before)
assert change[reward_G == 1].mean() > change[reward_G == 0].mean()

# %%
figure, axis = plt.subplots(figsize=(6, 2.8))
for r, colour in ((1, "C2"), (0, "C3")):
    where = np.flatnonzero(reward_G == r)
    axis.bar(where + 1, change[where], color=colour, width=0.6, label=f"reward {r}")
axis.axhline(0, color="black", linewidth=0.8)
axis.set_xlabel(f"answer (one group, G = {G})")
axis.set_ylabel("change of log π, nats")
axis.legend(fontsize=8)
figure.tight_layout()

# %% [markdown]
# **What you should see.** Answers with reward 1 gain log-probability compared with those with reward 0.
# No one said *why* the expert's action is better; the model keeps whatever leads it to the right choice.
#
# ## Exercise
#
# Dr. GRPO leaves the division by std(r) out. With one right answer among eight, by what factor does the
# division enlarge the right answer's advantage? Work it out, then check:

# %%
one_right = np.array([1.0] + [0.0] * (G - 1))
factor = advantages(one_right)[0] / advantages(one_right, scale=False)[0]

# %% [markdown]
# ## Solution
#
# 1 / (std + ε), where std² = G/(G−1) · p(1−p) and p = 1/G.

# %%
p = 1 / G
assert np.isclose(factor, 1 / (np.sqrt(G / (G - 1) * p * (1 - p)) + 1e-4))
print(f"factor {factor:.2f}: rare successes speak louder")
