"""One side of benchmarks/against_pytorch.py: a process that loads the exported model and answers a line of JSON to every line on stdin.

    {"prepare": "forward" | "train", "times": n}    compiles and runs it n times: {"losses": [n + 1], "peak_mb", "how"}
    {"run": "forward" | "train"}                    once: {"seconds"}
    {"peak": size}                                  a float32 product of that size (JAX alone): {"flops_per_s"}

losses: of the passes, and for train that after the last of them.
"""

import argparse
import importlib
import importlib.util
import json
import os
import sys
import time
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks import process_memory  # noqa: E402
from benchmarks.against_pytorch import LEARNING_RATE, WEIGHT_DECAY  # noqa: E402
from benchmarks.process_memory import status  # noqa: E402

# schedule, gradient: the fastest of benchmarks/train_step.py on a CPU (docs/results/train_step.md).
BEST = {
    "ar": {"forward": ("diagonal", "store"), "train": ("diagonal", "reversible")},
    "lm": {"forward": ("sequential", "store"), "train": ("sequential", "reversible")},
    "gpt2-small": {"forward": ("sequential", "store"), "train": ("sequential", "reversible")},
}


class Model(ABC):
    """A side. A pass returns its loss as a number, when all is computed."""

    def __init__(self, device: str):
        process_memory.restart_peak()
        self.device, self.baseline = device, status("RssAnon")

    @abstractmethod
    def compile(self, kind: str) -> str:
        """Makes that pass ready, as far as it can be without running it. Returns how it is done, in words."""

    @abstractmethod
    def forward(self) -> float: ...

    @abstractmethod
    def train(self) -> float: ...

    @abstractmethod
    def device_peak(self) -> int:
        """Bytes that the framework's allocator has held on a GPU."""

    def prepare(self, kind: str, times: int) -> dict:
        how = self.compile(kind)
        run = getattr(self, kind)
        losses = [run()]  # what is compiled when it first runs
        process_memory.restart_peak()
        files = status("VmRSS") - status("RssAnon")
        losses += [run() for _ in range(times)]
        if kind == "train":
            losses.append(self.forward())
        peak = status("VmHWM") - files - self.baseline if self.device == "cpu" else self.device_peak()
        return {"losses": losses, "peak_mb": peak / 2**20, "how": how}

    def run(self, kind: str) -> dict:
        start = time.perf_counter()
        getattr(self, kind)()
        return {"seconds": time.perf_counter() - start}


class Jax(Model):
    def __init__(self, folder: Path, ids: np.ndarray, shape: str, device: str):
        import jax

        from armt_jax.interop.pretrained import load_model

        jax.devices()
        super().__init__(device)
        self.jax, self.shape = jax, shape
        self.model = load_model(folder / "model")
        self.ids, self.targets = jax.numpy.asarray(ids[:, :-1]), jax.numpy.asarray(ids[:, 1:])
        self.steps = {}

    def compile(self, kind: str) -> str:
        import optax
        from flax import nnx

        jax, jnp = self.jax, self.jax.numpy
        schedule, gradient = BEST[self.shape][kind] if self.shape in BEST else ("sequential", "reversible")
        graphdef, params = nnx.split(self.model.with_recurrence(schedule=schedule, gradient=gradient))
        optimizer = optax.adamw(LEARNING_RATE, weight_decay=WEIGHT_DECAY)

        def loss(params, ids, targets):
            out = nnx.merge(graphdef, params).losses(ids, targets, jnp.ones(ids.shape, jnp.float32))
            return out.loss_S.sum() / out.weight_S.sum()

        def step(params, moments, ids, targets):
            value, gradients = jax.value_and_grad(loss)(params, ids, targets)
            updates, moments = optimizer.update(gradients, moments, params)
            return value, optax.apply_updates(params, updates), moments

        if kind == "forward":
            self.params = params
            self.steps[kind] = jax.jit(loss).lower(params, self.ids, self.targets).compile()
        else:
            self.moments = jax.jit(optimizer.init)(self.params)
            arguments = (self.params, self.moments, self.ids, self.targets)
            self.steps[kind] = jax.jit(step, donate_argnums=(0, 1)).lower(*arguments).compile()
            self.model = None  # the initial parameters are in `params`, which a step takes over
        return f"{schedule}, {gradient}"

    def forward(self) -> float:
        return float(self.steps["forward"](self.params, self.ids, self.targets))

    def train(self) -> float:
        value, self.params, self.moments = self.steps["train"](self.params, self.moments, self.ids, self.targets)
        self.jax.block_until_ready((self.params, self.moments))
        return float(value)

    def device_peak(self) -> int:
        return self.jax.devices()[0].memory_stats()["peak_bytes_in_use"]

    def peak(self, size: int) -> dict:
        """The speed of one large product."""
        if "peak" not in self.steps:
            self.steps["peak"] = self.jax.jit(lambda a, b: a @ b)
            self.jax.block_until_ready(self._product(size))
        start = time.perf_counter()
        self.jax.block_until_ready(self._product(size))
        return {"flops_per_s": 2 * size**3 / (time.perf_counter() - start)}

    def _product(self, size: int):
        if "matrix" not in self.steps:
            self.steps["matrix"] = self.jax.numpy.ones((size, size), self.jax.numpy.float32)
        return self.steps["peak"](self.steps["matrix"], self.steps["matrix"])


class Torch(Model):
    def __init__(self, folder: Path, ids: np.ndarray, threads: int, compiled: bool, device: str):
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads)
        torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], fused=True)  # what it imports is no part of the model
        # The file of the export, as it is.
        spec = importlib.util.spec_from_file_location("modeling_armt", folder / "model" / "modeling_armt.py")
        sys.modules["modeling_armt"] = modeling = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(modeling)
        importlib.import_module("transformers").utils.logging.disable_progress_bar()
        super().__init__(device)
        self.torch = torch
        self.model = modeling.ArmtForCausalLM.from_pretrained(folder / "model", dtype=torch.float32).to(device).train()
        self.ids = torch.tensor(ids[:, :-1], dtype=torch.int64, device=device)
        self.targets = torch.tensor(ids[:, 1:], dtype=torch.int64, device=device).flatten()
        if device == "cuda":
            torch.set_float32_matmul_precision("high")  # as JAX by default
        if compiled:
            # One row at a time would unroll its segments into a program as long as the row.
            self.model._segment = torch.compile(self.model._segment)

    def compile(self, kind: str) -> str:
        if kind == "train":
            self.optimizer = self.torch.optim.AdamW(self.model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
        return f"torch {self.torch.__version__}, {self.torch.get_num_threads()} threads"

    def _loss(self):
        logits = self.model(self.ids).logits
        return self.torch.nn.functional.cross_entropy(logits.flatten(0, 1), self.targets)

    def forward(self) -> float:
        with self.torch.no_grad():
            return self._loss().item()

    def train(self) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss()
        loss.backward()
        self.optimizer.step()
        if self.device == "cuda":
            self.torch.cuda.synchronize()
        return loss.item()

    def device_peak(self) -> int:
        return self.torch.cuda.max_memory_allocated()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("side", "folder", "shape", "device"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    # Answers alone go to the pipe: libraries print, too.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    folder = Path(args.folder)
    ids = np.load(folder / "ids.npy")
    model = None
    for line in sys.stdin:
        question = json.loads(line)
        try:
            if model is None:
                compiled = args.side == "torch-compile"
                if args.side == "jax":
                    model = Jax(folder, ids, args.shape, args.device)
                else:
                    model = Torch(folder, ids, args.threads, compiled, args.device)
            if "prepare" in question:
                answer = model.prepare(question["prepare"], question["times"])
            elif "run" in question:
                answer = model.run(question["run"])
            else:
                answer = model.peak(question["peak"])
        except Exception as error:  # whatever a compiler meets on this machine: it is told to the parent, which ends or leaves it out
            answer = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
