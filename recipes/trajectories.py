"""Train a decision transformer on short episodes, patch it, and drive episodes many times as long.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/trajectories.py \
        --config recipes/configs/beyond/cartpole.yaml

The environment is gymnasium's CartPole-v1 of which only the two positions are seen, not the two speeds: the model must look back
in time. A scripted driver, which sees everything and is made to err, gives the episodes. The table of time steps ends where
training ends, so that the model cannot run on: the table is made longer, or another method put in its place; each is then trained
a little more on the same short episodes. Scored are how often the model would do at a step of long episodes of the driver what
the driver means to do, and the share of a long episode of its own for which it keeps the pole up.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor
from transformers import DecisionTransformerConfig, DecisionTransformerModel

import pospatch
from pospatch.training.run import carry_out
from pospatch.training.study import ANEW, Curve, draw, fit, progress, settings, spread, stacks, write

AHEAD = 50  # steps of reward that a return counts
SEEN = [0, 2]  # cart position and pole angle


@dataclass
class Settings:
    """Times and lengths in steps of the environment."""

    output_dir: str
    patches: str = field(
        metadata={"help": "YAML: names and patches of the model whose table ends at the trained length"}
    )
    seeds: int = field(default=3, metadata={"help": "runs that differ in everything random"})
    trained_length: int = field(default=100, metadata={"help": "steps of an episode in training"})
    factors: list[float] = field(default_factory=lambda: [1.0, 2.0, 6.0], metadata={"help": "longer episodes"})
    context: int = field(default=16, metadata={"help": "steps that the model sees at once"})
    episodes: int = field(default=200, metadata={"help": "episodes of the driver"})
    evaluated: int = field(default=20, metadata={"help": "episodes that the model drives"})
    pushed: float = field(
        default=0.4, metadata={"help": "share of steps at which the model's action is replaced by chance"}
    )
    width: int = field(default=48, metadata={"help": "of the model; 2 layers, 4 heads"})
    steps: int = field(default=1000, metadata={"help": "training with the table"})
    steps_after: int = field(default=300, metadata={"help": "training after each patch"})
    learning_rate: float = 1e-3


def driver(state: np.ndarray) -> np.ndarray:
    """Push towards the side that the pole falls to, and gently back to the middle."""
    position, speed, angle, turning = state.T
    return (angle + 0.5 * turning + 0.05 * position + 0.1 * speed > 0).astype(int)


def worlds(count: int, length: int) -> Any:
    """`count` carts side by side, for at most `length` steps."""
    return gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1", max_episode_steps=length)] * count)


def record(chosen: Settings, seed: int, length: int, errs: float) -> dict[str, Tensor]:
    """Episodes of the driver, which errs in up to a share of the steps: what was seen, done, meant and returned, and how many
    steps each lasted."""
    drawn = np.random.default_rng(seed)
    share = drawn.uniform(0, errs, chosen.episodes)
    carts = worlds(chosen.episodes, 2 * length + AHEAD)
    state, _ = carts.reset(seed=1000 * seed)
    alive, states, actions, meant, rewards = np.ones(chosen.episodes), [], [], [], []
    with progress(f"recording {length} steps", length + AHEAD) as advance:
        for _ in range(length + AHEAD):  # returns look ahead
            right = driver(state)
            action = np.where(drawn.random(chosen.episodes) < share, drawn.integers(0, 2, chosen.episodes), right)
            for held, value in ((states, state[:, SEEN]), (actions, 2.0 * action - 1), (meant, 2.0 * right - 1)):
                held.append(value)
            rewards.append(alive.copy())
            state, _, ended, _, _ = carts.step(action)
            alive *= ~ended
            advance()
    carts.close()
    reward = np.stack(rewards, axis=1)
    returns = np.stack([reward[:, i + 1 : i + 1 + AHEAD].sum(1) / AHEAD for i in range(length)], axis=1)
    lasted = reward[:, :length].sum(1).astype(int)
    kept = lasted > chosen.context
    parts = {
        "states": np.stack(states, 1),
        "actions": np.stack(actions, 1)[..., None],
        "meant": np.stack(meant, 1)[..., None],
    }
    found = {name: torch.tensor(value[kept, :length], dtype=torch.float) for name, value in parts.items()}
    return {
        **found,
        "returns_to_go": torch.tensor(returns[kept, :, None]).float(),
        "lasted": torch.tensor(lasted[kept]),
    }


def stretch(data: dict[str, Tensor], which: Tensor, steps: Tensor) -> dict[str, Tensor]:
    """The arguments of the model for some steps (batch, context) of some episodes."""
    given = {name: data[name][which[:, None], steps] for name in ("states", "actions", "returns_to_go")}
    return {**given, "timesteps": steps, "attention_mask": torch.ones_like(steps)}


def loss_on(data: dict[str, Tensor], context: int, batch: int = 64) -> Any:
    """Squared error of the actions in random stretches of episodes."""

    def loss(model: Any) -> Tensor:
        which = torch.randint(len(data["lasted"]), (batch,))
        start = (torch.rand(batch) * (data["lasted"][which] - context + 1)).long()
        given = stretch(data, which, start[:, None] + torch.arange(context))
        return (model(**given).action_preds - given["actions"]).square().mean()

    return loss


@torch.no_grad()
def agreement(model: Any, data: dict[str, Tensor], chosen: Settings, end: int) -> float:
    """% of steps among the `trained_length` before `end` at which the model does what the driver means to."""
    right, scored = [], range(end - chosen.trained_length + chosen.context, end, 4)
    with progress(f"as the driver up to step {end}", len(scored)) as advance:
        for last in scored:
            which = (data["lasted"] > last).nonzero()[:, 0]
            steps = (last - chosen.context + 1 + torch.arange(chosen.context)).expand(len(which), -1)
            done = model(**stretch(data, which, steps)).action_preds[:, -1, 0]
            right.append((done > 0) == (data["meant"][which, last, 0] > 0))
            advance()
    return 100 * float(torch.cat(right).float().mean())


@torch.no_grad()
def drive(model: Any, chosen: Settings, length: int, seed: int) -> float:
    """Mean share of `length` steps for which the pole stays up though chance pushes the cart too, in %."""
    count, context = chosen.evaluated, chosen.context
    drawn = torch.Generator().manual_seed(seed)
    carts = worlds(count, length + 1)
    state, _ = carts.reset(seed=500_000 + 1000 * seed)
    alive, lasted = np.ones(count, dtype=bool), np.zeros(count)
    states, actions = torch.zeros(count, 0, 2), torch.zeros(count, 0, 1)
    with progress(f"driving {length} steps", length) as advance:
        for step in range(length):
            states = torch.cat((states, torch.tensor(state[:, SEEN], dtype=torch.float)[:, None]), dim=1)[:, -context:]
            actions = torch.cat((actions, torch.zeros(count, 1, 1)), dim=1)[:, -context:]
            steps = torch.arange(step + 1)[-context:].expand(count, -1)
            wanted = torch.ones(count, steps.shape[1], 1)
            given = {"states": states, "actions": actions, "returns_to_go": wanted, "timesteps": steps}
            done = model(**given, attention_mask=torch.ones_like(steps)).action_preds[:, -1, 0] > 0
            pushed = torch.rand(2, count, generator=drawn)
            done = torch.where(pushed[0] < chosen.pushed, pushed[1] > 0.5, done)
            actions[:, -1, 0] = 2.0 * done - 1
            lasted += alive
            state, _, ended, _, _ = carts.step(done.long().numpy())
            alive &= ~ended
            advance()
            if not alive.any():
                break
    carts.close()
    return 100 * float(lasted.mean()) / length


def build(chosen: Settings) -> Any:
    """A small decision transformer without dropout, whose table ends where training does."""
    config = DecisionTransformerConfig(
        state_dim=len(SEEN), act_dim=1, hidden_size=chosen.width, n_layer=2, n_head=4, max_ep_len=chosen.trained_length,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return DecisionTransformerModel(config)


def run(chosen: Settings) -> dict[str, Any]:
    """All seeds; what results.json holds."""
    patches = stacks(chosen.patches)
    lengths = [round(factor * chosen.trained_length) for factor in chosen.factors]
    found: dict[str, dict[str, list[list[float]]]] = {name: {"pole_up": [], "as_the_driver": []} for name in patches}
    before = []
    for seed in range(chosen.seeds):
        torch.manual_seed(seed)
        data = record(chosen, seed, chosen.trained_length, 0.4)
        unseen = record(chosen, 10_000 + seed, max(lengths), 0.2)
        base, loss = build(chosen), loss_on(data, chosen.context)
        fit(base, loss, steps=chosen.steps, rate=chosen.learning_rate, name=f"seed {seed}, training")
        before.append(agreement(base, unseen, chosen, chosen.trained_length))
        print(f"seed {seed}, trained with the table: as the driver at {before[-1]:.1f} % of short episodes", flush=True)
        for name, methods in patches.items():
            model = pospatch.apply(copy.deepcopy(base), methods)
            torch.manual_seed(100 + seed)
            fit(model, loss, steps=chosen.steps_after, rate=chosen.learning_rate, name=f"seed {seed}, {name}")
            one = found[name]
            one["as_the_driver"].append([agreement(model, unseen, chosen, length) for length in lengths])
            one["pole_up"].append([drive(model, chosen, length, seed) for length in lengths])
            print(
                f"seed {seed}, {name}: " + ", ".join(f"{k} {np.round(v[-1], 1)} %" for k, v in one.items()), flush=True
            )
    return {"lengths": lengths, "as_the_driver_before": before, "found": found}


def study(chosen: Settings) -> dict[str, Any]:
    """Run, and write results and picture."""
    results = run(chosen)
    folder = write(chosen.output_dir, chosen, results)
    curves = [
        Curve(name, tuple(results["lengths"]), spread(kinds["as_the_driver"]))
        for name, kinds in results["found"].items()
    ]
    draw(
        folder / "picture.png", curves, title="Decision transformer on CartPole without speeds", across="steps of the episode",
        up="as the driver, %", mark=chosen.trained_length,
    )  # fmt: skip
    print(f"wrote {folder / 'results.json'} and {folder / 'picture.png'}")
    return results


def main() -> None:
    """Run from flags."""
    carry_out(lambda: study(settings(Settings)), ANEW)


if __name__ == "__main__":
    main()
