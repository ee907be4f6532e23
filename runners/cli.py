"""The command `maw-gym`: every runner under one name.

`maw-gym train grpo` is `python runners/train_grpo.py`, with the same flags. A runner is imported
when it is asked for, so that a list of the commands does not wait for torch.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, get_type_hints

from maw_gym.errors import did_you_mean, printable

# What is typed: the runner's module, and what it does in a few words.
COMMANDS: Final = {
    "train grpo": ("train_grpo", "a router by GRPO"),
    "train ppo": ("train_ppo", "a router by PPO"),
    "train supervised": ("train_supervised", "a router from labels"),
    "train encoder": ("train_encoder", "an encoder; see what its depths are worth"),
    "compare": ("compare", "methods on the same queries, with tests of significance"),
    "evaluate": ("evaluate", "score a trained run on a collection"),
    "ablate": ("ablate", "change one setting of GRPO at a time"),
    "benchmark": ("benchmark", "measure speed and memory"),
    "bandits": ("bandits", "GRPO beside PPO, A2C and DQN on bandits and episodes"),
    "report": ("report", "write a run's report.html anew"),
    "search": ("search", "search a collection with a trained run"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` begin with; None are the program's."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    name = next((name for name in COMMANDS if words[: len(name.split())] == name.split()), None)
    if name is not None:
        from maw_gym.runners.experiments.runs import run_main

        runner = import_module(f"maw_gym.runners.{COMMANDS[name][0]}").main
        settings = get_type_hints(runner)["settings"]
        run_main(settings, runner, words[len(name.split()) :], f"maw-gym {name}")
    elif words == ["--version"]:
        from maw_gym import __version__

        print(f"maw_gym {__version__}")
    elif words in ([], ["train"]) or words[-1] in ("-h", "--help"):
        print(overview())
    else:
        given = " ".join(words[: 1 + (words[0] == "train")])
        question = did_you_mean(" ".join(words[:2]), COMMANDS) or did_you_mean(given, COMMANDS)
        message = f"unknown command {given!r}; {question}maw-gym --help shows all"
        print(f"error: {printable(message)}", file=sys.stderr)
        raise SystemExit(2)


def overview() -> str:
    """The help: all commands."""
    commands = "\n".join(f"  {name:18}{about}" for name, (_, about) in COMMANDS.items())
    return (
        "usage: maw-gym COMMAND [--flag VALUE ...]\n\nLearning which attention to use.\n\n"
        f"{commands}\n\n"
        "maw-gym COMMAND --help shows its flags; maw-gym --version shows the version."
    )


if __name__ == "__main__":
    main()
