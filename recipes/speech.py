"""Give the real Whisper tiny.en another length or other positions, and let it transcribe: as it is, patched, and after a little
training on its own transcripts.

    accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/speech.py \
        --config recipes/configs/beyond/whisper-5s.yaml

The sounds are recorded sentences of a telephone exchange (`pospatch.assets.prompts`), each alone or several in a row up to
`seconds`. The reference is what the unpatched model says to each sentence alone, in its own window of 30 seconds; the word error
rate counts words that another transcript has wrong, too many or too few, as a share of the reference's words. Training repeats
the reference on other sentences than those that are scored. Seconds are of the processor, with the threads that it runs with.
References are kept in the cache folder, so that a second run does not hear the sentences again.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration

import pospatch
from pospatch import assets
from pospatch.errors import BadOption
from pospatch.training.run import carry_out
from pospatch.training.study import ANEW, bars, fit, progress, settings, stacks, write

RATE, FRAMES = 16000, 50  # samples and encoder positions a second
WINDOW = 30.0  # seconds that the model was trained for
START = [50257, 50362]  # start of transcript, no timestamps
END = 50256


@dataclass
class Settings:
    """What is heard, what is patched, and how much is trained."""

    output_dir: str
    patch: str = field(metadata={"help": "YAML: a name and a patch of one part"})
    part: str = field(metadata={"help": "encoder or decoder"})
    seconds: float = field(default=WINDOW, metadata={"help": "length of the sounds that the patched model hears"})
    joined: bool = field(default=False, metadata={"help": "sentences in a row that fill the window"})
    scored: int = field(default=40, metadata={"help": "sounds that are scored"})
    sentences: int = field(default=200, metadata={"help": "sentences in all; a quarter of them is kept for scoring"})
    steps: int = field(default=100, metadata={"help": "training steps; 0 for none"})
    tuned: Literal["all", "part"] = field(
        default="all", metadata={"help": "train the whole model, or the patched part alone"}
    )
    batch: int = 8
    learning_rate: float = 2e-5
    seed: int = 0


def sentences(shortest: float, longest: float) -> list[tuple[str, Tensor]]:
    """(name, samples) of the recordings of such a length in seconds; some of different folders have the same stem."""
    found = [(f"{path.parent.name}/{path.stem}", assets.sound(path)) for path in assets.prompts()]
    return [(name, samples) for name, samples in found if shortest <= len(samples) / RATE <= longest]


class Ear:
    """A Whisper model with its features and its words."""

    def __init__(self, folder: Path) -> None:
        self.model = WhisperForConditionalGeneration.from_pretrained(folder).eval()
        self.words = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.used = 0.0

    def features(self, sounds: list[Tensor], seconds: float) -> Tensor:
        """Spectrograms (batch, bands, frames) of sounds, filled with silence to a length."""
        extract = WhisperFeatureExtractor(feature_size=80, chunk_length=seconds)
        extract.n_samples = round(seconds * RATE)
        given = [sound[: extract.n_samples].numpy() for sound in sounds]
        return extract(given, sampling_rate=RATE, return_tensors="pt").input_features

    @torch.no_grad()
    def transcribe(self, sounds: list[Tensor], seconds: float, batch: int = 10) -> list[str]:
        """The likeliest words, one after another; `used` counts the processor's seconds of encoder and decoder."""
        found, batches = [], [sounds[i : i + batch] for i in range(0, len(sounds), batch)]
        with progress(f"transcribing {len(sounds)} sounds", len(batches)) as advance:
            for some in batches:
                found += self._heard(some, seconds)
                advance()
        return found

    def _heard(self, sounds: list[Tensor], seconds: float) -> list[str]:
        """What one batch says."""
        features = self.features(sounds, seconds)
        begun = time.process_time()
        heard = self.model.model.encoder(features)
        tokens, cache = torch.tensor([START] * len(sounds)), None
        ended, given = torch.zeros(len(sounds), dtype=torch.bool), tokens
        for _ in range(round(20 + 8 * seconds)):
            out = self.model(encoder_outputs=heard, decoder_input_ids=given, past_key_values=cache, use_cache=True)
            cache, logits = out.past_key_values, out.logits[:, -1]
            logits[:, END + 1 :] = -torch.inf
            given = logits.argmax(-1, keepdim=True).masked_fill(ended[:, None], END)
            tokens = torch.cat((tokens, given), dim=1)
            ended |= given[:, 0] == END
            if ended.all():
                break
        self.used += time.process_time() - begun
        return [self.words.decode(row.tolist()) for row in tokens]


def plain(text: str) -> list[str]:
    """Words without case and punctuation."""
    return "".join(letter if letter.isalnum() or letter == "'" else " " for letter in text.lower()).split()


def word_errors(said: str, wanted: str) -> tuple[int, int]:
    """(words to change, add or leave out, words wanted)."""
    a, b = plain(said), plain(wanted)
    row = list(range(len(b) + 1))
    for i, word in enumerate(a, 1):
        above, row = row, [i]
        for j, other in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (word != other)))
    return row[-1], len(b)


def error_rate(said: list[str], wanted: list[str]) -> float:
    """Word error rate over all sounds, in %."""
    pairs = [word_errors(a, b) for a, b in zip(said, wanted, strict=True)]
    return 100 * sum(wrong for wrong, _ in pairs) / sum(words for _, words in pairs)


def rows(items: list[tuple[Tensor, str]], seconds: float, count: int, seed: int) -> list[tuple[Tensor, str]]:
    """`count` sounds of several sentences, as many as fit into `seconds`; half a second of silence between."""
    drawn, found = np.random.default_rng(seed), []
    for _ in range(count):
        sounds, texts, left = [], [], seconds
        for index in drawn.permutation(len(items)):
            sound, text = items[index]
            if len(sound) / RATE + 0.5 <= left:
                sounds += [sound, torch.zeros(RATE // 2)]
                texts.append(text.strip())
                left -= len(sound) / RATE + 0.5
        found.append((torch.cat(sounds), " ".join(texts)))
    return found


def references(ear: Ear, found: list[tuple[str, Tensor]]) -> list[str]:
    """What the unpatched model says to each sentence; what was said before is read from the cache folder."""
    path = assets.cache_directory() / "speech" / "whisper-tiny-en.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.is_file() else {}
    new = [(name, sound) for name, sound in found if name not in known]
    known |= dict(zip((name for name, _ in new), ear.transcribe([sound for _, sound in new], WINDOW), strict=True))
    path.write_text(json.dumps(known, indent=0) + "\n")
    return [known[name] for name, _ in found]


def prepare(chosen: Settings, ear: Ear) -> tuple[list[tuple[Tensor, str]], list[tuple[Tensor, str]]]:
    """Sounds with their references, for scoring and for training."""
    every = sentences(1.0, 8.0 if chosen.joined else min(chosen.seconds, 8.0))
    order = np.random.default_rng(chosen.seed).permutation(len(every))[: chosen.sentences]
    found = [every[i] for i in order]
    texts = references(ear, found)
    items = [(sound, text) for (_, sound), text in zip(found, texts, strict=True) if plain(text)]
    held, rest = items[: len(items) // 4], items[len(items) // 4 :]
    if not chosen.joined:
        return held[: chosen.scored], rest
    return rows(held, chosen.seconds, chosen.scored, 1), rows(rest, chosen.seconds, 4 * chosen.scored, 2)


def loss_on(ear: Ear, items: list[tuple[Tensor, str]], chosen: Settings) -> Any:
    """The usual loss of the reference's tokens, of random sounds."""
    targets = [[*START, *ear.words.encode(" " + text.strip(), add_special_tokens=False).ids, END] for _, text in items]

    def loss(model: Any) -> Tensor:
        which = torch.randint(len(items), (chosen.batch,)).tolist()
        features = ear.features([items[i][0] for i in which], chosen.seconds)
        longest = max(len(targets[i]) for i in which)
        tokens = torch.tensor([targets[i] + [-100] * (longest - len(targets[i])) for i in which])
        given = tokens[:, :-1].clamp(min=0)
        labels = tokens[:, 1:].clone()
        labels[:, 0] = -100  # that there are no timestamps is given
        logits = model(input_features=features, decoder_input_ids=given).logits
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())

    return loss


def run(chosen: Settings) -> dict[str, Any]:
    """What results.json holds."""
    torch.manual_seed(chosen.seed)
    ear = Ear(assets.whisper())
    scored, trained = prepare(chosen, ear)
    sounds, wanted = [sound for sound, _ in scored], [text for _, text in scored]
    results: dict[str, Any] = {"sounds": len(sounds), "words": sum(len(plain(text)) for text in wanted)}
    results["sentences_trained_on"] = len(trained)

    def say(name: str, seconds: float) -> None:
        ear.used = 0.0
        texts = ear.transcribe(sounds, seconds)
        results[name] = {
            "word_error_rate": round(error_rate(texts, wanted), 1),
            "cpu_seconds_a_sound": round(ear.used / len(sounds), 3),
            "first": texts[0],
        }
        print(f"{name}: {results[name]}", flush=True)

    results["reference"] = {"first": wanted[0]}
    say("as it is, window of 30 s", WINDOW)
    (_, methods), *more = stacks(chosen.patch).items()
    if more:
        raise BadOption(f"patch: speech.py takes one named patch, got {len(more) + 1}; run it once for each")
    pospatch.apply(ear.model, methods, part=chosen.part)
    say("patched", chosen.seconds)
    if chosen.tuned == "part":
        for name, value in ear.model.named_parameters():
            value.requires_grad_(value.requires_grad and f".{chosen.part}." in name)
    if chosen.steps:
        results["training"] = fit(
            ear.model, loss_on(ear, trained, chosen), steps=chosen.steps, rate=chosen.learning_rate
        )
        say("patched, trained", chosen.seconds)
    return results


def study(chosen: Settings) -> dict[str, Any]:
    """Run, and write results and picture."""
    results = run(chosen)
    folder = write(chosen.output_dir, chosen, results)
    heard = {name: each for name, each in results.items() if isinstance(each, dict) and "word_error_rate" in each}
    shown = {"words wrong, %": "word_error_rate", "CPU seconds a sound": "cpu_seconds_a_sound"}
    bars(
        folder / "picture.png",
        list(heard),
        {title: [each[name] for each in heard.values()] for title, name in shown.items()},
    )
    print(f"wrote {folder / 'results.json'} and {folder / 'picture.png'}")
    return results


def main() -> None:
    """Run from flags."""
    carry_out(lambda: study(settings(Settings)), f"{ANEW}, but for references that were heard to the end")


if __name__ == "__main__":
    main()
