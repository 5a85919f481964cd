"""What is measured beside plait: mergekit, sd-mecha, and any other command, each in a virtual environment of its own.

    python benchmarks/peers.py --mergekit /path/to/venv --sd-mecha /path/to/other-venv     # are they usable?

A peer gets the same recipe, or for sd-mecha the same models and parameters, and an output to make. They run with their defaults and
without access to a hub.
"""

from __future__ import annotations

import argparse
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes import FOR_BOTH, METHODS, models_of

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}

#: Merges like the recipe of the same name; arguments: method, output file, base, experts.
SD_MECHA_DRIVER = """
import sys
import sd_mecha

method, out, *files = sys.argv[1:]
base, *experts = (sd_mecha.model(f) for f in files)
deltas = [e - base for e in experts]
if method == "linear":
    recipe = sd_mecha.n_average(*experts)
elif method == "task_arithmetic":
    recipe = base + sum(deltas[1:], deltas[0]) * 0.4
elif method == "slerp":
    recipe = sd_mecha.slerp(base, experts[0], alpha=0.4)
elif method == "ties":
    recipe = base + sd_mecha.ties_sum(*deltas, k=0.3) * 0.5
elif method == "model_stock":
    recipe = base + sd_mecha.model_stock(*deltas)
else:
    sys.exit(f"no sd-mecha recipe for {method}")
sd_mecha.merge(recipe, output=out)
"""
SD_MECHA_METHODS = ("linear", "task_arithmetic", "slerp", "ties", "model_stock")


@dataclass(frozen=True)
class Peer:
    """A program to compare with.

    Attributes:
        name: in tables.
        version: of the package, as installed.
        methods: that it can run.
        command: from method, recipe, models and output to a command line.
        environment: variables that it runs with.
    """

    name: str
    version: str
    methods: tuple[str, ...]
    command: Callable[[str, Path, Sequence[Path], Path], list[str]]
    environment: dict[str, str]


def mergekit(venv: Path) -> Peer:
    """mergekit with its default options, but for the tokenizer that the made checkpoints do not have."""
    program = _program(venv, "mergekit-yaml")

    def command(_method: str, recipe: Path, _models: Sequence[Path], out: Path) -> list[str]:
        return [program, str(recipe), str(out), "--quiet", "--no-copy-tokenizer"]

    return Peer("mergekit", installed_version(venv, "mergekit"), tuple(FOR_BOTH), command, OFFLINE)


def sd_mecha(venv: Path) -> Peer:
    """sd-mecha with its default options, through its Python interface."""
    python = _program(venv, "python")

    def command(method: str, _recipe: Path, models: Sequence[Path], out: Path) -> list[str]:
        files = [str(m / "model.safetensors") for m in models]
        out.mkdir(parents=True, exist_ok=True)
        return [python, "-c", SD_MECHA_DRIVER, method, str(out / "model.safetensors"), *files]

    return Peer("sd-mecha", installed_version(venv, "sd-mecha"), SD_MECHA_METHODS, command, OFFLINE)


def other(text: str) -> Peer:
    """Any program, from `NAME=COMMAND` with `{method}`, `{recipe}`, `{out}` and `{models}` in it."""
    name, equals, template = text.partition("=")
    if not equals or not name or "{out}" not in template:
        raise SystemExit(f"--peer {text!r} is not NAME=COMMAND with {{out}} in it")

    def command(method: str, recipe: Path, models: Sequence[Path], out: Path) -> list[str]:
        words: list[str] = []
        for word in template.split():
            if word == "{models}":
                words += map(str, models_of(method, models))
            else:
                words.append(word.replace("{method}", method).replace("{recipe}", str(recipe)).replace("{out}", str(out)))
        return words

    return Peer(name, "", tuple(METHODS), command, {})


def installed_version(venv: Path, package: str) -> str:
    """Version of a package in a virtual environment."""
    ask = f"import importlib.metadata as m; print(m.version({package!r}))"
    done = subprocess.run([_program(venv, "python"), "-c", ask], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{package} is not installed in {venv}: make it with python -m venv, then pip install {package}")
    return done.stdout.strip()


def _program(venv: Path, name: str) -> str:
    path = venv / "bin" / name
    if not path.exists():
        raise SystemExit(f"{venv} has no {name}: give the folder of a virtual environment in which it is installed")
    return str(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose peers."""
    parser.add_argument("--mergekit", type=Path, metavar="VENV", help="virtual environment that has mergekit")
    parser.add_argument("--sd-mecha", type=Path, metavar="VENV", help="virtual environment that has sd-mecha")
    parser.add_argument(
        "--peer", action="append", default=[], metavar="NAME=COMMAND", help="another program; {recipe}, {models}, {method}, {out} are filled in"
    )


def chosen(args: argparse.Namespace) -> list[Peer]:
    """The peers that the options name."""
    found = [mergekit(args.mergekit)] if args.mergekit else []
    found += [sd_mecha(args.sd_mecha)] if args.sd_mecha else []
    return found + [other(text) for text in args.peer]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    for peer in chosen(parser.parse_args()):
        print(peer.name, peer.version, ", ".join(peer.methods))


if __name__ == "__main__":
    main()
