"""The README.md of an exported folder: what the model is, where it comes from, how to load it, how well it agrees."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from flax import nnx

from armt_jax.data.tokenizers import Tokenizer
from armt_jax.interop.parity import TOLERANCES, Figure
from armt_jax.model import MemoryTransformer
from armt_jax.telemetry.jsonl import read_lines
from armt_jax.version import __version__

LOAD = {
    "hf": """import torch
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
ids = torch.randint(0, model.config.vocab_size, (2, 100))
out = model(ids)                                        # out.logits, out.memory_state
out = model(ids, memory_state=out.memory_state)         # goes on from there
new = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20)""",
    "backbone": """from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")""",
    "reference": """from pathlib import Path

from safetensors.torch import load_file

# into the published wrapper around a backbone of config.json's sizes; its settings are under "armt_jax" there
for file in Path("{name}").glob("*.safetensors"):
    model.load_state_dict(load_file(file), strict=False)        # a tied head is not stored twice""",
}
# In metrics.jsonl, what the validation of a step found.
VALIDATION = "validation_"


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a model comes from. raw: the run's plain config."""

    workdir: Path
    raw: Mapping[str, Any]
    step: int
    tokenizer: Tokenizer | None

    def save_tokenizer(self, folder: Path) -> None:
        """The tokenizer's own files, and tokenizer.json with what AutoTokenizer needs, where the `tokenizers` library has its like."""
        if self.tokenizer is None:
            return
        self.tokenizer.save(folder)
        library = self.tokenizer.in_library()
        if library is None:
            return
        (folder / "tokenizer.json").write_text(library.to_str(), "utf-8")
        fields = dict(tokenizer_class="PreTrainedTokenizerFast", padding_side="left", clean_up_tokenization_spaces=False)
        if self.tokenizer.end_id is not None:
            fields["eos_token"] = library.id_to_token(self.tokenizer.end_id)
        (folder / "tokenizer_config.json").write_text(json.dumps(fields, indent=1) + "\n")

    def how_to_tokenize(self, name: str) -> list[str]:
        """Lines of the card."""
        tokenizer = self.tokenizer
        if tokenizer is None:
            return []
        head = f"Tokenizer: `{tokenizer.kind}`, {tokenizer.vocab_size:,} ids."
        if tokenizer.in_library() is not None:
            call = f'tokenizer = transformers.AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)'
            return [head, "", "```python", call, "```", ""]
        why = "transformers has none that gives the same ids for every text; armt_jax has:"
        call = f'tokenizer = {type(tokenizer).__name__}.load(pathlib.Path("{name}"))      # encode(text), decode(ids)'
        code = ["import pathlib", "", f"from armt_jax.data.tokenizers import {type(tokenizer).__name__}", "", call]
        return [f"{head} {why}", "", "```python", *code, "```", ""]

    def metrics(self) -> dict[str, float]:
        """The last validation up to the exported step."""
        path, found = self.workdir / "metrics.jsonl", {}
        if not path.is_file():
            return found
        for row in read_lines(path):  # a run that was killed may have left half a line
            if row.get("step", 0) <= self.step and any(name.startswith(VALIDATION) for name in row):
                found = {name: value for name, value in row.items() if name.startswith(VALIDATION) and value is not None}
        return found


def _origin(name: str, origin: Origin | None) -> list[str]:
    if origin is None:
        return []
    source = origin.raw.get("data") or origin.raw.get("task")
    run = f"Step {origin.step} of the run `{origin.workdir.name}`, trained with armt_jax {__version__}."
    lines = ["## Where it comes from", "", run, ""]
    lines += [f"Data: `{json.dumps(source)}`", ""]
    lines += origin.how_to_tokenize(name)
    metrics = origin.metrics()
    if metrics:
        lines += ["| validation | |", "|---|---:|", *(f"| {n.removeprefix(VALIDATION)} | {v:.6g} |" for n, v in metrics.items()), ""]
    config = json.dumps(origin.raw, indent=1)
    return [*lines, "<details><summary>Config of the run</summary>", "", "```json", config, "```", "</details>", ""]


def _agreement(figures: Sequence[Figure] | None, format: str) -> list[str]:
    if figures is None:
        return ["Not compared with the JAX model (exported with --check=false).", ""]
    if not figures:
        return ["Read back, the file gives the parameters of the JAX model, bit for bit.", ""]
    lines = [
        "Compared with the JAX model by the export itself, in float32 with the weights as they are in the file. Logits: largest absolute",
        "difference, in units of the largest logit where that is above 1. State: relative to its largest entry. Generated: tokens that",
        "differ.", "", "| case | what | found | bar | absolute |", "|---|---|---:|---:|---:|",
    ]  # fmt: skip
    absolute = lambda f: f"{f.error * f.unit:.1e}" if f.kind == "logits" else ""
    return [*lines, *(f"| {f.case} | {f.kind} | {f.error:.1e} | {TOLERANCES[f.kind]:.0e} | {absolute(f)} |" for f in figures), ""]


def model_card(
    name: str, model: MemoryTransformer, format: str, dtype: str, figures: Sequence[Figure] | None, origin: Origin | None
) -> str:
    """figures: None: nothing was compared."""
    config, backbone = model.config, type(model.config.backbone).__name__
    count = sum(leaf.size for leaf in jax.tree.leaves(nnx.split(model)[1]))
    memory = type(config.memory).__name__ if dataclasses.fields(config.memory) else "no memory"
    parts = [
        "---", "library_name: transformers", "tags: [memory, long-context]", "---", "", f"# {name}", "",
        f"{backbone} with {memory}, {count:,} parameters in {dtype}, segments of {config.recurrence.segment_length} tokens.",
        "", "## Load", "", "```python", LOAD[format].format(name=name), "```", "",
        *_origin(name, origin), "## Agreement", "", *_agreement(figures, format),
    ]  # fmt: skip
    return "\n".join(parts)
