"""Train a small ViT to read pages of handwritten digits, patch it, and read larger pages.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/vision.py \
        --config recipes/configs/beyond/digits.yaml

The images are scikit-learn's 1797 scans of digits, 8 by 8 pixels. A page is a square cut out of rows and columns of them, at any
even offset; the model says for every patch of 2 by 2 pixels which digit it is part of, and is scored on patches of digits that
lie wholly on the page. Pages are made of held-out digits for scoring. "larger" pages have more digits of the same size; in
"enlarged" ones the page of the trained size is sampled finer. The table is resized by bicubic interpolation, as ViT does it; each
patch is put in its place and trained a little on pages of the trained size; so is the table, as a control.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, interpolate
from transformers import ViTConfig, ViTModel

import pospatch
from pospatch.training.run import carry_out
from pospatch.training.study import ANEW, Curve, draw, fit, progress, settings, spread, stacks, write

DIGIT, PATCH = 8, 2  # pixels


@dataclass
class Settings:
    """Sizes in pixels; a larger or enlarged page is `trained_size` times a factor."""

    output_dir: str
    patches: str = field(metadata={"help": "YAML: names and patches; [] is the table as it is"})
    seeds: int = field(default=3, metadata={"help": "runs that differ in everything random"})
    trained_size: int = field(default=16, metadata={"help": "side of a page in training, pixels"})
    factors: list[float] = field(default_factory=lambda: [1.0, 1.5, 2.0], metadata={"help": "sides of pages, relative"})
    width: int = field(default=64, metadata={"help": "of the model; 3 layers, 4 heads"})
    steps: int = field(default=2400, metadata={"help": "training with the table"})
    steps_after: int = field(default=600, metadata={"help": "training after each patch"})
    learning_rate: float = 1.5e-3
    batch: int = 16
    scored: int = field(default=120, metadata={"help": "pages of the trained size that are scored; fewer larger ones"})


class Pages:
    """Pages of some digits: pixels (batch, 1, side, side), and for each patch its digit and whether it counts."""

    def __init__(self, pixels: Tensor, names: Tensor) -> None:
        self.pixels, self.names = pixels, names

    def __call__(self, count: int, size: int, draw_: torch.Generator | None = None) -> tuple[Tensor, Tensor, Tensor]:
        side = size // DIGIT + 1
        chosen = torch.randint(len(self.names), (count, side, side), generator=draw_)
        whole = self.pixels[chosen].transpose(2, 3).reshape(count, side * DIGIT, side * DIGIT)
        names = self.names[chosen].repeat_interleave(DIGIT, 1).repeat_interleave(DIGIT, 2)
        corners = PATCH * torch.randint(DIGIT // PATCH, (count, 2), generator=draw_)
        where = corners[:, :, None] + torch.arange(size)  # (count, 2, size): rows and columns of the cut
        page = whole[torch.arange(count)[:, None, None], where[:, 0, :, None], where[:, 1, None]]
        label = names[torch.arange(count)[:, None, None], where[:, 0, ::PATCH, None], where[:, 1, None, ::PATCH]]
        # where on the page the digit of a patch begins
        first = where[:, :, ::PATCH] // DIGIT * DIGIT - corners[:, :, None]
        inside = (first >= 0) & (first + DIGIT <= size)
        return page[:, None], label, inside[:, 0, :, None] & inside[:, 1, None]


def digits(seed: int) -> tuple[Pages, Pages]:
    """Pages for training and for scoring, of different digits."""
    pixels, names = (torch.tensor(value) for value in load_digits(return_X_y=True))
    pixels = (pixels / 8 - 1).float().view(-1, DIGIT, DIGIT)
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[:-500], order[-500:]
    return Pages(pixels[train], names[train]), Pages(pixels[held_out], names[held_out])


class Reader(nn.Module):
    """A ViT that names the digit of every patch."""

    def __init__(self, chosen: Settings) -> None:
        super().__init__()
        config = ViTConfig(
            image_size=chosen.trained_size, patch_size=PATCH, num_channels=1, hidden_size=chosen.width, num_hidden_layers=3,
            num_attention_heads=4, intermediate_size=2 * chosen.width, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.vit = ViTModel(config, add_pooling_layer=False)
        self.head = nn.Linear(chosen.width, 10)

    def forward(self, pages: Tensor) -> Tensor:
        """Logits (batch, patches, 10) for pages of any size."""
        hidden = self.vit(pixel_values=pages, interpolate_pos_encoding=True).last_hidden_state
        return self.head(hidden[:, 1:])


@torch.no_grad()
def accuracy(model: nn.Module, page: Tensor, label: Tensor, counts: Tensor) -> float:
    """% of the patches that count whose digit is named right."""
    named = torch.cat([model(some).argmax(-1) for some in page.split(20)]).view(label.shape)
    return 100 * float((named == label)[counts].float().mean())


def score(model: nn.Module, pages: Pages, chosen: Settings) -> dict[str, list[float]]:
    """Accuracy on larger and on enlarged pages, a number for each factor."""

    def drawn(factor: float, side: float) -> tuple[Tensor, Tensor, Tensor]:
        count = max(20, round(chosen.scored / factor**2))
        return pages(count, round(chosen.trained_size * side), torch.Generator().manual_seed(1))

    found: dict[str, list[float]] = {"larger": [], "enlarged": []}
    with progress("scoring", len(chosen.factors)) as advance:
        for factor in chosen.factors:
            found["larger"].append(accuracy(model, *drawn(factor, factor)))
            page, label, counts = drawn(factor, 1.0)
            size = round(chosen.trained_size * factor)
            old = ((torch.arange(size // PATCH) + 0.5) * chosen.trained_size / size).long()  # where each patch lies
            finer = interpolate(page, size=(size, size), mode="bilinear", align_corners=False)
            found["enlarged"].append(accuracy(model, finer, label[:, old][:, :, old], counts[:, old][:, :, old]))
            advance()
    return found


def run(chosen: Settings) -> dict[str, Any]:
    """All seeds; what results.json holds."""
    patches = stacks(chosen.patches)
    found: dict[str, dict[str, list[list[float]]]] = {name: {"larger": [], "enlarged": []} for name in patches}
    before: list[dict[str, list[float]]] = []
    for seed in range(chosen.seeds):
        train, held_out = digits(seed)

        def loss(model: nn.Module, pages: Pages = train) -> Tensor:
            page, label, _ = pages(chosen.batch, chosen.trained_size)
            return cross_entropy(model(page).flatten(0, 1), label.flatten())

        torch.manual_seed(seed)
        base = Reader(chosen)
        fit(base, loss, steps=chosen.steps, rate=chosen.learning_rate, name=f"seed {seed}, training")
        before.append(score(base, held_out, chosen))
        print(f"seed {seed}, trained with the table: {shown(before[-1])}", flush=True)
        for name, methods in patches.items():
            model = copy.deepcopy(base)
            if methods:
                pospatch.apply(model.vit, methods)
            torch.manual_seed(100 + seed)
            fit(model, loss, steps=chosen.steps_after, rate=chosen.learning_rate, name=f"seed {seed}, {name}")
            scores = score(model, held_out, chosen)
            for kind, values in scores.items():
                found[name][kind].append(values)
            print(f"seed {seed}, {name}: {shown(scores)}", flush=True)
    return {"accuracy_before": before, "accuracy": found}


def shown(scores: dict[str, list[float]]) -> str:
    """Scores on one line."""
    return ", ".join(f"{kind} {' '.join(f'{v:.1f}' for v in values)} %" for kind, values in scores.items())


def study(chosen: Settings) -> dict[str, Any]:
    """Run, and write results and picture."""
    results = run(chosen)
    folder = write(chosen.output_dir, chosen, results)
    curves = [
        Curve(name, tuple(chosen.factors), spread(runs))
        for name, kinds in results["accuracy"].items()
        for kind, runs in kinds.items()
        if kind == "larger"
    ]
    draw(
        folder / "picture.png", curves, title="ViT on larger pages of digits", across="side of the page / trained side",
        up="patches named right, %", mark=1.0,
    )  # fmt: skip
    print(f"wrote {folder / 'results.json'} and {folder / 'picture.png'}")
    return results


def main() -> None:
    """Run from flags."""
    carry_out(lambda: study(settings(Settings)), ANEW)


if __name__ == "__main__":
    main()
