"""The rationale intervention: does a critic's choice follow from its reasoning?

The paper asks a trained critic the same questions three times: reasoning freely, with the rationale
removed, and with a wrong one put into its mouth. Here the reply is begun for the model, after the
same prompt, and the model completes it:

    none      (nothing: it reasons, then chooses)
    remove    an empty thought, then <choice>
    wrong     an argument for a wrong candidate, then <choice>

A critic whose reasoning decides should do worse under `remove` and follow `wrong`; one that follows
nothing has decided before it reasons. The words of the wrong argument are ours, in the wording's
section "wrong rationale".
"""

from __future__ import annotations

from collections.abc import Sequence

from miniact.method.prompts import Prompter


def wrong_choice(choices: int, right: int) -> int:
    """The candidate that the wrong argument is for: the one after the right one, in a circle."""
    return (right + 1) % choices


def forced_prefix(prompter: Prompter, kind: str, actions: Sequence[str], right: int) -> str:
    """The beginning of the reply that is forced on the critic; "" for kind none.

    actions: as shown; the expert's stands at index `right`.
    """
    if kind == "none":
        return ""
    thought = ""
    if kind == "wrong":
        wrong = wrong_choice(len(actions), right)
        thought = prompter.wording.fill(
            "wrong rationale", right=actions[right], wrong=actions[wrong], number=wrong + 1
        )
    return prompter.render_thought(thought) + "<choice>"
