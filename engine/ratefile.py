"""The measured rates of this machine, kept in the user's cache folder: read back tolerantly, written whole."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from plait.engine.machine import cores
from plait.engine.surroundings import processor
from plait.planner.rates import DEFAULT_RATES, Rates

VERSION = 1
_NAME = "machine.json"
_AGAIN = "the default rates are used; run `plait bench machine` to measure again"


def rates_path() -> Path:
    """Where the rates lie: `$PLAIT_CACHE_DIR`, else plait's folder in the user's cache."""
    return Path(os.environ.get("PLAIT_CACHE_DIR") or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "plait") / _NAME


def describe_machine() -> dict[str, Any]:
    """What rates depend on: processor and cores."""
    return {"cpu": processor(), "cores": cores()}


def load_rates(path: Path | None = None) -> tuple[Rates, list[str]]:
    """The stored rates, or the defaults with a word on why where a file is there but cannot be used."""
    path = path or rates_path()
    try:
        text = path.read_text()
    except FileNotFoundError:
        return DEFAULT_RATES, []
    except (OSError, UnicodeDecodeError) as error:
        return DEFAULT_RATES, [f"{path} cannot be read ({error}): {_AGAIN}"]
    try:
        data = json.loads(text)
        version, machine, rates = data["version"], data["machine"], data["rates"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return DEFAULT_RATES, [f"{path} is damaged: {_AGAIN}"]
    if version != VERSION:
        return DEFAULT_RATES, [f"{path} was written by another version of plait: {_AGAIN}"]
    if machine != describe_machine():
        return DEFAULT_RATES, [f"{path} was measured on another machine: {_AGAIN}"]
    if not _sound(rates):
        return DEFAULT_RATES, [f"{path} is damaged: {_AGAIN}"]
    return Rates(**{**rates, "cores": int(rates["cores"]), "measured": True}), []


def _sound(rates: Any) -> bool:
    """Whether these are all the rates, each a positive number."""
    if not isinstance(rates, dict) or set(rates) != {f.name for f in fields(Rates)} - {"measured"}:
        return False
    return all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) and v > 0 for v in rates.values()) and rates["cores"] >= 1


def save_rates(rates: Rates, path: Path | None = None) -> Path:
    """Store measured rates with a description of the machine; returns where.

    Raises:
        OSError: the folder cannot be written.
    """
    path = path or rates_path()
    kept = {name: value for name, value in asdict(rates).items() if name != "measured"}
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    partial.write_text(json.dumps({"version": VERSION, "machine": describe_machine(), "rates": kept}, indent=1) + "\n")
    partial.replace(path)
    return path
