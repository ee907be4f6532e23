"""Flip single bits in files of every kind; none may be accepted with another content.

python tests/endurance/flips.py --flips 2000 --seed 0
"""

import argparse
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from hand_made import random_table

from agents.grpo import GRPO
from agents.sb3.training_state import training_state
from agents.sb3.vec_env import to_sb3
from maw_gym.checkpoints import Checkpoints
from maw_gym.encoders.encoder_files import load_embedder, save_embedder, untrained_embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.envs.vector_environment import GRPOVectorEnvironment
from maw_gym.errors import InputError
from maw_gym.files import fingerprint
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.tables.task import read_table, write_table

ABOUT = {"run": "flips"}


class Case(NamedTuple):
    """A file, and everything that its reader makes of it."""

    path: Path
    content: Callable[[], Any]


def checkpoint(folder: Path) -> Case:
    """The checkpoint of a short training."""
    environment = GRPOVectorEnvironment(16, group_size=8, table=random_table(50, 8))
    model = GRPO("MlpPolicy", to_sb3(environment), advantage="group", seed=0, device="cpu")
    model.learn(64)
    checkpoints = Checkpoints(folder / "checkpoints", ABOUT)
    path = checkpoints.write(model.num_timesteps, *training_state(model))

    def content() -> Any:
        found = checkpoints.restore(lambda _: None)
        if found is None:
            raise InputError("left out")
        return found.step, found.state, fingerprint(found.tensors)

    return Case(path, content)


def router(folder: Path) -> Case:
    """A router with two layers."""
    draw = torch.Generator().manual_seed(0)
    layers = [(torch.randn(n, m, generator=draw), torch.randn(n)) for n, m in ((32, 64), (8, 32))]
    about = {"learner": "GRPO", "dataset": "pydocs", "encoder": "0" * 64, "seed": 0}
    made = DepthRouter(layers, "tanh", torch.zeros(64), torch.ones(64), ["attention"], about, 10.0)
    path = folder / "router.safetensors"
    save_router(path, made)

    def content() -> Any:
        found = load_router(path)
        plain = (found.activation, found.limit, found.observation, found.settings, found.shared)
        return plain, fingerprint(found.state_dict())

    return Case(path, content)


def encoder(folder: Path) -> Case:
    """An untrained encoder of two depths."""
    path = folder / "encoder.safetensors"
    embedder = untrained_embedder(["bees make honey", "bread"], EncoderSettings(depths=2))
    save_embedder(path, embedder, {"names": ["tiny"], "validation nDCG@10": 0.5})

    def content() -> Any:
        found, provenance = load_embedder(path)
        return found.fingerprint(), provenance

    return Case(path, content)


def table(folder: Path) -> Case:
    """A table of 200 queries."""
    path = folder / "table.safetensors"
    made = random_table(200, 8)
    write_table(path, made)

    def content() -> Any:
        found = read_table(path)
        return found.query_ids, [column.tobytes() for column in found.columns.values()]

    return Case(path, content)


KINDS = {"checkpoint": checkpoint, "router": router, "encoder": encoder, "table": table}


def flip(case: Case, bit: int) -> str:
    """What becomes of the file with one bit flipped: refused, same or ACCEPTED; it is mended."""
    data = case.path.read_bytes()
    before = case.content()
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    # Not in place: what was read before is still mapped.
    case.path.unlink()
    case.path.write_bytes(changed)
    try:
        return "same" if case.content() == before else "ACCEPTED"
    except InputError:
        return "refused"
    finally:
        case.path.unlink(missing_ok=True)
        case.path.write_bytes(data)


def main(flips: int, seed: int) -> dict[str, Counter[str]]:
    """Flip `flips` bits in all, half of them in headers; what became of each kind of file."""
    logging.disable(logging.WARNING)
    draw = random.Random(seed)
    found: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as name:
        for number, (kind, make) in enumerate(KINDS.items()):
            case = make(Path(name))
            size = case.path.stat().st_size
            with case.path.open("rb") as file:
                header = 8 + int.from_bytes(file.read(8), "little")
            found[kind] = Counter(refused=0, same=0, ACCEPTED=0)
            for count in range((flips + number) // len(KINDS)):
                within = header if count % 2 else size
                found[kind][flip(case, draw.randrange(8 * within))] += 1
    logging.disable(logging.NOTSET)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    results = main(arguments.flips, arguments.seed)
    for what, outcomes in results.items():
        print(f"{what}: {', '.join(f'{count} {how}' for how, count in outcomes.items())}")
    print(f"{time.perf_counter() - start:.0f} s")
    raise SystemExit(any(outcomes["ACCEPTED"] for outcomes in results.values()))
