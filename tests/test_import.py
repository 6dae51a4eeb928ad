"""Importing ftnb does nothing but define names."""

import json
import subprocess
import sys

import pytest

NOT_IMPORTED = {"nbdev", "fastcore", "trl", "peft", "matplotlib"}
NOT_EXPORTED = {"evaluate", "Trainer", "Dataset", "load_dataset", "pipeline"}

# The libraries that ftnb stands on do change the process when they are imported: they come first, and it is not
# for ftnb to answer for them.
EFFECTS = """
import json, logging, os, socket, sys, warnings
import datasets, evaluate, torch, transformers
def refuse(*args): raise AssertionError(f"import ftnb opens a connection: {args[1:]}")
socket.socket.connect = socket.socket.connect_ex = refuse
def state():
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    handlers = {log.name: str(log.handlers) for log in loggers if isinstance(log, logging.Logger) and log.handlers}
    return dict(environ=dict(os.environ), filters=[str(f) for f in warnings.filters], handlers=handlers)
before = state()
from ftnb import *
after = state()
print(json.dumps({key: [before[key], after[key]] for key in before if before[key] != after[key]}))
"""
NAMES = """
import json, sys
names = {}
exec("from ftnb import *", names)
print(json.dumps([sorted(names), sorted({name.partition(".")[0] for name in sys.modules})]))
"""


def python(code: str):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)
    return json.loads(done.stdout.splitlines()[-1])


def test_import_has_no_effects() -> None:
    assert python(EFFECTS) == {}


def test_names_and_modules() -> None:
    names, modules = python(NAMES)
    assert not NOT_EXPORTED.intersection(names), "these would shadow libraries that people use beside ftnb"
    assert not NOT_IMPORTED.intersection(modules), "a user of ftnb need not have these"
